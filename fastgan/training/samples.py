"""Images from a generator: on the latents that a run's grids keep, as a grid, as files."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.errors import ConfigError

_BATCH = 64


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> np.ndarray:
    """uint8 [N, H, W, C] from latents [N, latent], by a generator in evaluation mode.

    Evaluation mode uses the running statistics, so that an image does not depend on the others of
    its batch and the statistics are not moved by looking.
    """
    pieces = []
    for latent in z.split(_BATCH):
        images = generator(latent).float().clamp(-1.0, 1.0)
        pixels = ((images + 1.0) * 127.5).round().to(torch.uint8)
        pieces.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(pieces)


def image_grid(images: np.ndarray, border: int = 2) -> Image.Image:
    """The images [N, H, W, C] in a grid as square as may be, row by row, `border` pixels apart."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.zeros(
        (rows * (height + border) + border, columns * (width + border) + border, channels),
        np.uint8,
    )
    for index, image in enumerate(images):
        top = border + (index // columns) * (height + border)
        left = border + (index % columns) * (width + border)
        canvas[top : top + height, left : left + width] = image
    return to_pillow(canvas)


def to_pillow(image: np.ndarray) -> Image.Image:
    """One image [H, W, C] with 1, 3 or 4 channels."""
    if image.shape[2] not in (1, 3, 4):
        raise ConfigError(f"an image of {image.shape[2]} channels cannot be drawn: 1, 3 or 4 can")
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file's content."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_folder(images: np.ndarray, folder: Path) -> None:
    """Write 000000.png, 000001.png ... into `folder`, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        to_pillow(image).save(folder / f"{index:06d}.png")
