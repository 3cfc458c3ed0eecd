"""A data set as training sees it: a packed file, mapped into memory, and batches cut from it.

Nothing is decoded here. The operating system's page cache keeps what fits, and several processes
on one machine share it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from fastgan.data.format import PIXELS_OFFSET, read_header

_TRANSFER_BYTES = 256 << 20


class PackedImages:
    """Images of one size, memory-mapped and immutable. Made by `open_images`; may be pickled.

    Args:
        path: a packed file.

    Attributes:
        path: the packed file.
        pixels: uint8 [N, H, W, C], read-only, mapped: reading it reads the file.
        labels: int64 [N], or None where the source has no labels.
        classes: the names of the labels; empty where there are none.
        name: where the images came from when they were packed, for people.
        digest: SHA-256 (hex) of pixels, labels and classes: equal digests are equal data.
        skipped: how many images of the source were left out as bad.
        image_size: (H, W) in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        fastgan.data.format.FormatError: the file is not a complete packed file.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        # One open file for both: another process may replace the path between two opens.
        with open(self.path, "rb", buffering=0) as file:
            header = read_header(file)
            shape = (header.count, header.height, header.width, header.channels)
            mapped = np.memmap(file, np.uint8, mode="r", offset=PIXELS_OFFSET, shape=shape)
        self.pixels: np.ndarray = mapped.view(np.ndarray)
        self.labels = header.labels
        if self.labels is not None:
            self.labels.flags.writeable = False
        self.classes = header.classes
        self.name = header.name
        self.digest = header.digest
        self.skipped = header.skipped
        self.image_size = (header.height, header.width)
        self.channels = header.channels
        # One long row an image: gathering rows is one copy each, whatever H, W and C are.
        self._rows = self.pixels.reshape(header.count, -1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"PackedImages({self.name!r}: {len(self)} images, "
            f"{height}x{width} pixels, {self.channels} channels)"
        )

    def __reduce__(self) -> tuple[type[PackedImages], tuple[Path]]:
        return PackedImages, (self.path,)

    def batch(self, indices: np.ndarray) -> torch.Tensor:
        """The images at `indices`, copied out of the map.

        Args:
            indices: integers [B], each from 0 to N - 1; repeats are allowed.

        Returns:
            uint8, logical shape [B, C, H, W], `torch.channels_last` strides.

        Raises:
            IndexError: an index is out of range.
        """
        rows = self._rows.take(np.asarray(indices, dtype=np.int64), axis=0)
        images = rows.reshape(-1, *self.image_size, self.channels)
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def resident(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The whole set in one tensor of its own on `device`, for data that fit there.

        Returns:
            uint8, logical shape [N, C, H, W], `torch.channels_last` strides.
        """
        count = len(self)
        whole = torch.empty(self.pixels.shape, dtype=torch.uint8, device=device)
        block = max(1, _TRANSFER_BYTES // self._rows.shape[1])
        with warnings.catch_warnings():
            # The map is read-only, which torch warns about; it is only read from here.
            warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
            for start in range(0, count, block):
                piece = torch.from_numpy(self.pixels[start : start + block])
                whole[start : start + block].copy_(piece)
        return whole.permute(0, 3, 1, 2)


def normalise(batch_uint8: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    """Pixels 0..255 to the range of the generator's tanh: x / 127.5 - 1.

    The bytes travel to the device, and become four times as many only there.

    Args:
        batch_uint8: uint8 [B, C, H, W].
        device: where the result shall be; None leaves it where the batch is.

    Returns:
        float32 [B, C, H, W] in [-1, 1], `torch.channels_last` strides.

    Raises:
        ValueError: the batch is not uint8 of four dimensions.
    """
    if batch_uint8.dtype != torch.uint8 or batch_uint8.dim() != 4:
        raise ValueError(
            f"batch_uint8 must be a uint8 tensor [B, C, H, W], "
            f"got {batch_uint8.dtype} of shape {tuple(batch_uint8.shape)}"
        )
    moved = batch_uint8.to(device=device, non_blocking=True)
    return moved.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1.0)
