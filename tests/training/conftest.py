"""Small images and configurations that train in milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fastgan.data import PackedImages, open_images
from fastgan.training import TrainConfig, Trainer


@pytest.fixture(scope="session")
def noise_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npy of 40 colour images of 16x16."""
    path = tmp_path_factory.mktemp("noise") / "noise.npy"
    np.save(path, np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 16, 16, 3), "u1"))
    return path


@pytest.fixture(scope="session")
def images(noise_file: Path) -> PackedImages:
    return open_images(noise_file, 16, cache_dir=noise_file.parent / "cache", progress=False)


@pytest.fixture
def small(noise_file: Path) -> Callable[..., TrainConfig]:
    """Makes configurations for `images`, with a few settings changed."""

    def make(**settings: Any) -> TrainConfig:
        base: dict[str, Any] = {
            "data": str(noise_file),
            "image_size": 16,
            "channels": 3,
            "latent_dim": 6,
            "generator_width": 4,
            "discriminator_width": 4,
            "batch_size": 8,
            "sample_count": 4,
            "steps": 6,
            "device": "cpu",
        }
        return TrainConfig(**{**base, **settings})

    return make


@pytest.fixture
def trainer(small, images, tmp_path) -> Callable[..., Trainer]:
    """Makes trainers into tmp_path / "run" that say nothing."""

    def make(**settings: Any) -> Trainer:
        return Trainer(small(**settings), images, tmp_path / "run", Console(quiet=True))

    return make
