"""Which stem and how many stride-2 stages make an image of a given height and width.

A DCGAN generator starts from a small map (the stem) and doubles it; the discriminator mirrors
it. For 64×64 the plan is a 4×4 stem and four stages: the network of the PyTorch example.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastgan.errors import ConfigError

SMALLEST_IMAGE = 16
SMALLEST_STEM = 4
# Wider than this multiple of the base width, deep networks cost more than they gain: a 128-pixel
# network has 8, 8, 4, 2, 1 times the width.
WIDEST_MULTIPLE = 8


@dataclass(frozen=True)
class StagePlan:
    """A stem of `stem` = (height, width) pixels, doubled `stages` times."""

    stem: tuple[int, int]
    stages: int

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self.stem[0] << self.stages, self.stem[1] << self.stages

    def channels(self, width: int) -> tuple[int, ...]:
        """Channels of the maps from the stem outwards, `stages` of them, ending at `width`."""
        return tuple(
            width * min(1 << stage, WIDEST_MULTIPLE) for stage in reversed(range(self.stages))
        )


def plan_stages(height: int, width: int) -> StagePlan:
    """Plan a network for images of `height` × `width` pixels.

    As many stages as leave a stem of whole pixels, at least 4 on each side.

    Raises:
        ConfigError: a side is not a multiple of 4 from 16 up.
    """
    for name, side in (("height", height), ("width", width)):
        if side < SMALLEST_IMAGE or side % 4:
            raise ConfigError(
                f"image {name} {side} cannot be planned: it must be a multiple of 4, "
                f"{SMALLEST_IMAGE} or more (the nearest is {_nearest_side(side)})"
            )
    stages = 2
    while all(
        side % (2 << stages) == 0 and side >> (stages + 1) >= SMALLEST_STEM
        for side in (height, width)
    ):
        stages += 1
    return StagePlan(stem=(height >> stages, width >> stages), stages=stages)


def parse_image_size(size: int | str | tuple[int, int] | list[int]) -> tuple[int, int]:
    """(height, width) from 64, "64", "64x96" or (64, 96).

    Raises:
        ConfigError: `size` is none of these.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+)\s*(?:[x×]\s*(\d+))?\s*", size)
        if match:
            return int(match[1]), int(match[2] or match[1])
    elif isinstance(size, int):
        return size, size
    elif len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    raise ConfigError(f"image size {size!r} is not understood: give 64, or 64x96 (height x width)")


def _nearest_side(side: int) -> int:
    return max(SMALLEST_IMAGE, 4 * ((side + 2) // 4))
