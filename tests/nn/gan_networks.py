"""GAN networks built in the ways that people build them, small enough for one CPU core.

Each entry of `NETWORKS` makes a module and the arguments of a call; `accelerate` must leave what it
computes alone, however it is put together.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def dcgan_generator(latent: int = 8, width: int = 4, channels: int = 3) -> nn.Sequential:
    """The PyTorch example's generator, at 16x16."""
    return nn.Sequential(
        nn.ConvTranspose2d(latent, width * 2, 4, 1, 0, bias=False),
        nn.BatchNorm2d(width * 2),
        nn.ReLU(True),
        nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(True),
        nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def dcgan_discriminator(width: int = 4, channels: int = 3, sigmoid: bool = True) -> nn.Sequential:
    """The PyTorch example's discriminator, at 16x16."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
        nn.BatchNorm2d(width * 2),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width * 2, 1, 4, 1, 0, bias=False),
    ]
    return nn.Sequential(*layers, nn.Sigmoid()) if sigmoid else nn.Sequential(*layers)


class HandWrittenDiscriminator(nn.Module):
    """Layers as attributes, functional activations, a forward written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 5, 2, 2)
        self.second = nn.Conv2d(4, 6, (3, 5), (2, 1), padding=(1, 2), padding_mode="reflect")
        self.norm = nn.BatchNorm2d(6, momentum=0.3)
        self.act = nn.LeakyReLU(0.1)
        self.head = nn.Linear(6, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = F.leaky_relu(self.first(images), 0.2)
        features = self.act(self.norm(self.second(features)))
        return self.head(features.mean((2, 3))).flatten()


class HandWrittenGenerator(nn.Module):
    """Dense stem, upsampling, convolutions with "same" padding, and an output_size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4 * 3 * 3)
        self.grow = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.mix = nn.Sequential(nn.Conv2d(4, 5, 4, padding="same"), nn.ReLU())
        self.to_image = nn.Conv2d(5, 3, 3, padding="same", dilation=2)

    def forward(self, latent: Tensor) -> Tensor:
        features = self.stem(latent).view(-1, 4, 3, 3)
        features = self.grow(features, output_size=[6, 6])
        features = self.mix(F.interpolate(features, scale_factor=2))
        return torch.tanh(self.to_image(features))


def spectral_discriminator() -> nn.Sequential:
    """Spectral norm by parametrization on every convolution."""
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, 1, 1)),
        nn.LeakyReLU(0.1),
        parametrizations.spectral_norm(nn.Conv2d(4, 4, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        parametrizations.spectral_norm(nn.Linear(4 * 8 * 8, 1)),
    )


def old_spectral_discriminator() -> nn.Sequential:
    """Spectral norm by the old forward pre-hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(
            nn.utils.spectral_norm(nn.Conv2d(3, 4, 3, 1, 1)),
            nn.LeakyReLU(0.1),
            nn.utils.spectral_norm(nn.Conv2d(4, 1, 4, 2, 1)),
            nn.Sigmoid(),
        )


def weight_normed_generator() -> nn.Sequential:
    """Weight norm, by parametrization and by the old forward pre-hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(
            parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 4, 1, 0), dim=1),
            nn.ReLU(),
            nn.utils.weight_norm(nn.ConvTranspose2d(6, 3, 4, 2, 1)),
            nn.Tanh(),
        )


class ResidualBlock(nn.Module):
    """Pre-activation block; the inplace activation must not touch the skip's tensor."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(
                norm1=nn.BatchNorm2d(inputs),
                relu1=nn.ReLU(inplace=True),
                conv1=nn.Conv2d(inputs, outputs, 3, padding=1),
                norm2=nn.BatchNorm2d(outputs, affine=False),
                relu2=nn.ReLU(inplace=True),
                conv2=nn.Conv2d(outputs, outputs, 3, padding=1, groups=2),
            )
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.skip(features) + self.body(features)


def resnet_discriminator() -> nn.Sequential:
    """Residual blocks, pooling and a dense head."""
    return nn.Sequential(
        ResidualBlock(3, 4),
        nn.AvgPool2d(2),
        ResidualBlock(4, 6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 1),
    )


class Down(nn.Sequential):
    """A subclass of Sequential that only sets its modules."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2),
        )


class Up(nn.Sequential):
    """Its mirror image, with dropout behind the activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(0.0),
        )


class UNet(nn.Module):
    """pix2pix in miniature: skips join what goes down to what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Down(3, 4), Down(4, 6)])
        self.up = nn.ModuleList([Up(6, 4), Up(8, 4)])
        self.head = nn.Sequential(nn.Conv2d(4, 3, 1), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        first = self.down[0](images)
        second = self.down[1](first)
        joined = torch.cat([self.up[0](second), first], 1)
        return self.head(self.up[1](joined))


class SharedNorm(nn.Module):
    """One BN (and one convolution) in two Sequentials with different followers; one BN frozen."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(4)
        conv = nn.Conv2d(3, 4, 3, padding=1)
        self.rectified = nn.Sequential(conv, norm, nn.ReLU())
        self.bounded = nn.Sequential(conv, norm, nn.Tanh())
        self.raw = nn.Sequential(conv, norm)
        self.frozen = nn.BatchNorm2d(4)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.cumulative = nn.BatchNorm2d(4, momentum=None)
        for parameter in self.frozen.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> SharedNorm:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        both = self.rectified(images) + self.bounded(images) + self.raw(images)
        return self.cumulative(self.untracked(self.frozen(both)))


class ConditionalGenerator(nn.Module):
    """A label embedding joins the latent, and scales the features behind an affine-free norm."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, 4)
        self.scale = nn.Embedding(classes, 6)
        self.stem = nn.ConvTranspose2d(8, 6, 4)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.body = nn.Sequential(
            nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(6, 1, 5, padding=2), nn.Sigmoid()
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        code = torch.cat([latent, self.embed(labels)], 1)[:, :, None, None]
        features = self.norm(self.stem(code)) * self.scale(labels)[:, :, None, None]
        return self.body(features)


def _images(channels: int, size: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda rng: (torch.rand(4, channels, size, size, generator=rng) * 2 - 1,)


def _latent(*shape: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda rng: (torch.randn(4, *shape, generator=rng),)


def _conditional(rng: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(4, 4, generator=rng), torch.tensor([0, 3, 4, 3])


def _in_eval(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: build().eval()


# name -> (how to build the network, how to draw the arguments of a call)
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[torch.Generator], tuple[Tensor, ...]]]] = {
    "dcgan_generator": (dcgan_generator, _latent(8, 1, 1)),
    "dcgan_discriminator": (dcgan_discriminator, _images(3, 16)),
    "one_channel_generator": (lambda: dcgan_generator(channels=1), _latent(8, 1, 1)),
    "one_channel_discriminator": (lambda: dcgan_discriminator(channels=1), _images(1, 16)),
    "evaluated_discriminator": (_in_eval(dcgan_discriminator), _images(3, 16)),
    "hand_written_discriminator": (HandWrittenDiscriminator, _images(3, 11)),
    "hand_written_generator": (HandWrittenGenerator, _latent(6)),
    "spectral_discriminator": (spectral_discriminator, _images(3, 16)),
    "old_spectral_discriminator": (old_spectral_discriminator, _images(3, 8)),
    "weight_normed_generator": (weight_normed_generator, _latent(8, 1, 1)),
    "resnet_discriminator": (resnet_discriminator, _images(3, 8)),
    "unet": (UNet, _images(3, 8)),
    "shared_norm": (SharedNorm, _images(3, 6)),
    "conditional_generator": (ConditionalGenerator, _conditional),
}


def build(name: str, device: str = "cpu") -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Make the network called `name` and arguments for it, the same ones at every call."""
    make_network, draw = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make_network()
    arguments = draw(torch.Generator().manual_seed(1))
    return network.to(device), tuple(argument.to(device) for argument in arguments)
