"""Networks: the DCGAN of the PyTorch example at any plannable size, and the book's GAN.

All are plain `torch.nn` modules, so that checkpoints interchange with other people's code;
`fastgan.accelerate` swaps their layers for fast ones in place.
"""

from fastgan.models.book import BookDiscriminator, BookGAN, BookGenerator
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator, initialise
from fastgan.models.plan import StagePlan, parse_image_size, plan_stages
from fastgan.models.presets import PRESETS, Preset, build_networks

__all__ = [
    "BookDiscriminator",
    "BookGAN",
    "BookGenerator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "PRESETS",
    "Preset",
    "StagePlan",
    "build_networks",
    "initialise",
    "parse_image_size",
    "plan_stages",
]
