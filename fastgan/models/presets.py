"""Networks by name, with the training settings that their source uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from fastgan.errors import ConfigError
from fastgan.models.book import BookDiscriminator, BookGAN, BookGenerator
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator, require_one_of
from fastgan.models.plan import parse_image_size


@dataclass(frozen=True)
class Preset:
    """A named pair of networks.

    `settings` are the values of `fastgan.training.TrainConfig` that differ from its defaults.
    """

    name: str
    description: str
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("dcgan", "the DCGAN of the PyTorch example, at any plannable image size"),
            Preset(
                "digits",
                "a small DCGAN for 32×32 greyscale images, trained in minutes on a CPU",
                MappingProxyType(
                    {
                        "image_size": (32, 32),
                        "channels": 1,
                        "latent_dim": 32,
                        "generator_width": 32,
                        "discriminator_width": 32,
                        "real_label": 0.9,
                        "steps": 1500,
                    }
                ),
            ),
            Preset(
                "book",
                "the GAN of 'Generative Deep Learning' (28×28, 1 channel, dropout, RMSprop)",
                MappingProxyType(
                    {
                        "image_size": (28, 28),
                        "channels": 1,
                        "optimiser": "rmsprop",
                        "discriminator_lr": 8e-4,
                        "generator_lr": 4e-4,
                    }
                ),
            ),
        )
    }
)


def build_networks(
    preset: str = "dcgan",
    *,
    image_size: int | tuple[int, int] = 64,
    channels: int = 3,
    latent_dim: int = 100,
    generator_width: int = 64,
    discriminator_width: int = 64,
    upsample: Literal["transposed", "resize"] = "transposed",
    output: Literal["probability", "logit"] = "probability",
) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator of a preset, freshly initialised, in that order.

    The book's layers are fixed: its widths, kernels and upsampling are not arguments here (build
    `BookGAN` yourself for others).

    Raises:
        ConfigError: an unknown preset, or a value that it does not allow.
    """
    require_one_of("preset", preset, tuple(PRESETS))
    size = parse_image_size(image_size)
    if preset == "book":
        book = BookGAN(z_dim=latent_dim)
        if (*size, channels) != book.input_dim:
            height, width, depth = book.input_dim
            raise ConfigError(
                f"preset 'book' makes images of {height}x{width} with {depth} channel, "
                f"not {size[0]}x{size[1]} with {channels}"
            )
        return BookGenerator(book), BookDiscriminator(book, output)
    generator = DCGANGenerator(size, channels, latent_dim, generator_width, upsample)
    return generator, DCGANDiscriminator(size, channels, discriminator_width, output)
