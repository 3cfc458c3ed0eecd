"""Images from a generator: on the latents that a run's grids keep, as a grid, as files."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastgan.errors import ConfigError, RunError
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import replace_file
from fastgan.training.state import build_generator

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


def load_generator(path: Path, weights: str, device: torch.device) -> tuple[nn.Module, TrainConfig]:
    """The generator of a checkpoint, in evaluation mode, and the run's configuration.

    Args:
        path: the checkpoint's folder.
        weights: "ema" (the averaged generator) or "generator" (as the last step left it).
        device: where to put it.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint = load_checkpoint(path, (weights,))
    config = checkpoint.config
    generator = build_generator(config)
    generator.load_state_dict(checkpoint.tensors[weights])
    return generator.to(device).eval(), config


def write_images(images: np.ndarray, out: Path) -> None:
    """Write a grid where `out` ends in .png, else a folder of 000000.png, 000001.png ...

    Whole or not at all. Raises `RunError` where the folder exists and is not empty.
    """
    if out.suffix.lower() == ".png":
        replace_file(out, png_bytes(image_grid(images)))
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not an empty folder: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        for index, image in enumerate(images):
            to_pillow(image).save(temporary / f"{index:06d}.png")
        temporary.chmod(0o755)  # mkdtemp's folder is its owner's alone
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
