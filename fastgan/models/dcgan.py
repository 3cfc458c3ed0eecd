"""DCGAN (Radford, Metz, Chintala 2015, arXiv:1511.06434) as the PyTorch example writes it.

At 64×64 the modules' names, their order of construction (and so, for one seed, their initial
values), their outputs and their checkpoints are those of the example; other sizes follow the
plan of `fastgan.models.plan`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.plan import parse_image_size, plan_stages

LEAKY_SLOPE = 0.2
UPSAMPLERS = ("transposed", "resize")
OUTPUTS = ("probability", "logit")


def initialise(network: nn.Module) -> nn.Module:
    """Draw the initial values in place: convolutions N(0, 0.02²), BN γ N(1, 0.02²), β 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
    return network


class DCGANGenerator(nn.Module):
    """Images from latents: a stem, then one doubling a stage.

    Args:
        image_size: side of a square image, or (height, width), in pixels; multiples of 4, ≥ 16.
        channels: channels of the image.
        latent_dim: length of a latent vector.
        width: channels of the last hidden map (`ngf` of the example).
        upsample: "transposed" (4×4 stride-2 transposed convolutions: the recipe) or "resize"
            (nearest-neighbour doubling and a 3×3 convolution: no checkerboard artefacts;
            Odena et al. 2016, doi:10.23915/distill.00003).

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 64,
        upsample: Literal["transposed", "resize"] = "transposed",
    ) -> None:
        super().__init__()
        require_positive(channels=channels, latent_dim=latent_dim, width=width)
        require_one_of("upsample", upsample, UPSAMPLERS)
        plan = plan_stages(*parse_image_size(image_size))
        self.image_size, self.channels, self.latent_dim = plan.image_size, channels, latent_dim
        double = _transposed if upsample == "transposed" else _resize
        first, *hidden = plan.channels(width)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim, first, plan.stem, 1, 0, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(True),
        ]
        for before, after in zip([first, *hidden], hidden, strict=False):
            layers += [double(before, after), nn.BatchNorm2d(after), nn.ReLU(True)]
        layers += [double(width, channels), nn.Tanh()]
        self.main = nn.Sequential(*layers)
        initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        """[N, latent_dim] or [N, latent_dim, 1, 1] → images [N, channels, H, W] in [−1, 1]."""
        if latents.dim() == 2:
            latents = latents[:, :, None, None]
        return self.main(latents)


class DCGANDiscriminator(nn.Module):
    """How real an image looks: one halving a stage, then a head over what is left.

    Args:
        image_size, channels, width: as for `DCGANGenerator` (`ndf` of the example).
        output: "probability" ends in the example's sigmoid; "logit" leaves it out (it has no
            parameters, so checkpoints fit both).

    Raises:
        ConfigError: an argument has a value that is not allowed.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        width: int = 64,
        output: Literal["probability", "logit"] = "probability",
    ) -> None:
        super().__init__()
        require_positive(channels=channels, width=width)
        require_one_of("output", output, OUTPUTS)
        plan = plan_stages(*parse_image_size(image_size))
        self.image_size, self.channels, self.output = plan.image_size, channels, output
        first, *hidden = reversed(plan.channels(width))
        layers: list[nn.Module] = [
            nn.Conv2d(channels, first, 4, 2, 1, bias=False),
            nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
        ]
        for before, after in zip([first, *hidden], hidden, strict=False):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            ]
        layers.append(nn.Conv2d([first, *hidden][-1], 1, plan.stem, 1, 0, bias=False))
        if output == "probability":
            layers.append(nn.Sigmoid())
        self.main = nn.Sequential(*layers)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] → [N] probabilities or logits."""
        return torch.flatten(self.main(images))


def _transposed(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)


def _resize(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(before, after, 3, 1, 1, bias=False),
    )


def require_positive(**values: int) -> None:
    """Raise a ConfigError that names the first argument which is not a positive int."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a positive whole number, not {value!r}")


def require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a ConfigError that names `name` where `value` is not in `allowed`."""
    if value not in allowed:
        choices = " or ".join(repr(choice) for choice in allowed)
        raise ConfigError(f"{name} must be {choices}, not {value!r}")
