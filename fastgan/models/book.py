"""The GAN of "Generative Deep Learning" (Foster, O'Reilly 2019), layer by layer.

The book builds it with Keras: 'same' padding (which on even sizes with stride 2 is one pixel
before and two after), biases everywhere, batch-norm momentum in Keras's sense (0.9 there is 0.1
here) and its epsilon of 1e-3. Names follow the book's arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.dcgan import OUTPUTS, require_one_of

KERAS_EPSILON = 1e-3
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class BookGAN:
    """The book's arguments; the defaults are its MNIST-like example (28×28×1).

    `input_dim` and `generator_initial_dense_layer_size` are (height, width, channels).
    """

    input_dim: tuple[int, int, int] = (28, 28, 1)
    discriminator_conv_filters: tuple[int, ...] = (64, 64, 128, 128)
    discriminator_conv_kernel_size: tuple[int, ...] = (5, 5, 5, 5)
    discriminator_conv_strides: tuple[int, ...] = (2, 2, 2, 1)
    discriminator_batch_norm_momentum: float | None = None
    discriminator_activation: str = "relu"
    discriminator_dropout_rate: float | None = 0.4
    generator_initial_dense_layer_size: tuple[int, int, int] = (7, 7, 64)
    generator_upsample: tuple[int, ...] = (2, 2, 1, 1)
    generator_conv_filters: tuple[int, ...] = (128, 64, 64, 1)
    generator_conv_kernel_size: tuple[int, ...] = (5, 5, 5, 5)
    generator_conv_strides: tuple[int, ...] = (1, 1, 1, 1)
    generator_batch_norm_momentum: float | None = 0.9
    generator_activation: str = "relu"
    generator_dropout_rate: float | None = None
    z_dim: int = 100

    def __post_init__(self) -> None:
        for network, names in (
            ("discriminator", ("conv_kernel_size", "conv_strides")),
            ("generator", ("upsample", "conv_kernel_size", "conv_strides")),
        ):
            layers = len(getattr(self, f"{network}_conv_filters"))
            for name in names:
                if len(getattr(self, f"{network}_{name}")) != layers:
                    raise ConfigError(
                        f"{network}_{name} must have one entry for each of the {layers} layers "
                        f"of {network}_conv_filters, not {getattr(self, f'{network}_{name}')}"
                    )
            require_one_of(
                f"{network}_activation",
                getattr(self, f"{network}_activation"),
                tuple(ACTIVATIONS),
            )
        made = self.generated_size()
        if made != self.input_dim:
            raise ConfigError(
                f"the generator's layers make images of {made} (height, width, channels), "
                f"but input_dim is {self.input_dim}"
            )

    def generated_size(self) -> tuple[int, int, int]:
        """(height, width, channels) that the generator's layers make."""
        height, width, _ = self.generator_initial_dense_layer_size
        for scale, stride in zip(self.generator_upsample, self.generator_conv_strides, strict=True):
            height, width = (-(-side * scale // stride) for side in (height, width))
        return height, width, self.generator_conv_filters[-1]


class BookGenerator(nn.Module):
    """Dense → BN → activation → reshape → [nearest ×2, conv, BN, activation] … → conv → tanh."""

    def __init__(self, book: BookGAN | None = None) -> None:
        super().__init__()
        book = book or BookGAN()
        height, width, channels = book.generator_initial_dense_layer_size
        activation = ACTIVATIONS[book.generator_activation]
        momentum = book.generator_batch_norm_momentum
        self.latent_dim = book.z_dim
        self.image_size, self.channels = book.input_dim[:2], book.input_dim[2]
        units = height * width * channels
        dense: list[nn.Module] = [nn.Linear(book.z_dim, units)]
        if momentum is not None:
            dense.append(nn.BatchNorm1d(units, KERAS_EPSILON, 1 - momentum))
        dense += [activation(), nn.Unflatten(1, (channels, height, width))]
        if book.generator_dropout_rate is not None:
            dense.append(nn.Dropout(book.generator_dropout_rate))
        self.dense = nn.Sequential(*dense)

        layers: list[nn.Module] = []
        last = len(book.generator_conv_filters) - 1
        for index, (scale, filters, kernel, stride) in enumerate(
            zip(
                book.generator_upsample,
                book.generator_conv_filters,
                book.generator_conv_kernel_size,
                book.generator_conv_strides,
                strict=True,
            )
        ):
            if scale != 1:
                layers.append(nn.Upsample(scale_factor=scale, mode="nearest"))
                height, width = height * scale, width * scale
            layers += _same_conv(channels, filters, kernel, stride, (height, width))
            channels, height, width = filters, -(-height // stride), -(-width // stride)
            if index < last:
                if momentum is not None:
                    layers.append(nn.BatchNorm2d(channels, KERAS_EPSILON, 1 - momentum))
                layers.append(activation())
            else:
                layers.append(nn.Tanh())
        self.main = nn.Sequential(*layers)
        _initialise_like_keras(self)

    def forward(self, latents: Tensor) -> Tensor:
        """[N, z_dim] or [N, z_dim, 1, 1] → images [N, channels, H, W] in [−1, 1]."""
        return self.main(self.dense(torch.flatten(latents, 1)))


class BookDiscriminator(nn.Module):
    """[conv, BN (not the first), activation, dropout] … → flatten → dense 1 → sigmoid.

    `output="logit"` leaves the sigmoid out.
    """

    def __init__(
        self,
        book: BookGAN | None = None,
        output: Literal["probability", "logit"] = "probability",
    ) -> None:
        super().__init__()
        require_one_of("output", output, OUTPUTS)
        book = book or BookGAN()
        height, width, channels = book.input_dim
        self.image_size, self.channels, self.output = (height, width), channels, output
        momentum = book.discriminator_batch_norm_momentum
        layers: list[nn.Module] = []
        for index, (filters, kernel, stride) in enumerate(
            zip(
                book.discriminator_conv_filters,
                book.discriminator_conv_kernel_size,
                book.discriminator_conv_strides,
                strict=True,
            )
        ):
            layers += _same_conv(channels, filters, kernel, stride, (height, width))
            channels, height, width = filters, -(-height // stride), -(-width // stride)
            if momentum is not None and index > 0:
                layers.append(nn.BatchNorm2d(channels, KERAS_EPSILON, 1 - momentum))
            layers.append(ACTIVATIONS[book.discriminator_activation]())
            if book.discriminator_dropout_rate is not None:
                layers.append(nn.Dropout(book.discriminator_dropout_rate))
        layers += [nn.Flatten(), nn.Linear(channels * height * width, 1)]
        if output == "probability":
            layers.append(nn.Sigmoid())
        self.main = nn.Sequential(*layers)
        _initialise_like_keras(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] → [N] probabilities or logits."""
        return torch.flatten(self.main(images))


def _same_conv(
    before: int, after: int, kernel: int, stride: int, size: tuple[int, int]
) -> list[nn.Module]:
    """A convolution with Keras 'same' padding for maps of `size`; the odd pixel goes after."""
    total = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in size]
    (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in total)
    if (top, left) == (bottom, right):
        return [nn.Conv2d(before, after, kernel, stride, (top, left))]
    return [nn.ZeroPad2d((left, right, top, bottom)), nn.Conv2d(before, after, kernel, stride)]


def _initialise_like_keras(network: nn.Module) -> None:
    """Convolutions N(0, 0.02²) as the book sets, dense layers Glorot uniform, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
