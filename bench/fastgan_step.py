"""fastgan's training step as a provider of `bench step` and `bench memory`: the Trainer's own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.baselines import (
    BETAS,
    CHANNELS,
    LATENT_DIM,
    LEARNING_RATE,
    StepRecord,
    Workload,
    named_parameters,
    take_record,
)
from fastgan.data import PackedImages, open_images
from fastgan.training import TrainConfig, Trainer


class FastganProvider:
    """`Trainer.step` on images that are already on the device, as the baselines have them.

    Args:
        precision: "fp32" or "bf16".
        name: the provider's name.
        settings: of `TrainConfig`, where they differ from its defaults.
    """

    ours = True

    def __init__(self, precision: str, name: str = "fastgan", **settings: Any) -> None:
        self.precision, self.name, self.settings = precision, name, settings
        self.implementation = ""
        self._built: tuple[Workload, Trainer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None}

    def trainer(self, workload: Workload) -> Trainer:
        """A trainer at the workload's initial weights, its averaged generator switched off."""
        config = TrainConfig(
            data="bench",
            image_size=(workload.image_size, workload.image_size),
            channels=CHANNELS,
            latent_dim=LATENT_DIM,
            generator_width=workload.width,
            discriminator_width=workload.width,
            generator_lr=LEARNING_RATE,
            discriminator_lr=LEARNING_RATE,
            betas=BETAS,
            ema_half_life=0.0,
            batch_size=workload.batch_size,
            precision=self.precision,
            seed=workload.seed,
            device=str(workload.device),
            **self.settings,
        )
        with tempfile.TemporaryDirectory() as folder:
            data = random_images(Path(folder), workload.batch_size, workload.image_size)
            trainer = Trainer(config, data, out=Path(folder) / "run")
        state = trainer.state
        networks = zip((state.generator, state.discriminator), workload.networks(), strict=True)
        for mine, initial in networks:
            mine.load_state_dict(initial.state_dict())
            state.refresh_packed(mine)
        return trainer

    def record(self, workload: Workload) -> StepRecord:
        """One step from the initial weights; the trainer draws `workload.latents()` by itself."""
        trainer = self.trainer(workload)
        self._built = workload, trainer
        state = trainer.state
        before = named_parameters(state.generator, state.discriminator)
        metrics = trainer.step(workload.images())
        if workload.device.type == "cuda":
            self.implementation = trainer.runner.how
        return take_record(
            before,
            state.generator,
            state.discriminator,
            (state.generator_optimizer, state.discriminator_optimizer),
            {"discriminator loss": metrics["loss_d"], "generator loss": metrics["loss_g"]},
        )

    def program(self, workload: Workload) -> Callable[[], object]:
        """One call, one step, of the trainer that `record` has built if there is one."""
        if self._built is None or self._built[0] != workload:
            self._built = workload, self.trainer(workload)
        trainer = self._built[1]
        images = workload.images().contiguous(memory_format=trainer.state.memory_format)
        return lambda: trainer.step(images)


# The switches of the fast step, one by one.
SWITCHES: dict[str, dict[str, Any]] = {
    "fastgan, no switch": {"one_pass": "off", "cast_once": False},
    "fastgan, one D pass": {"one_pass": "on", "cast_once": False},
    "fastgan, weights cast once": {"one_pass": "off", "cast_once": True},
}


def random_images(folder: Path, count: int, image_size: int, seed: int = 0) -> PackedImages:
    """A packed set of `count` square images of random pixels, in files under `folder`."""
    pixels = np.random.default_rng(seed).integers(
        0, 256, (count, image_size, image_size, CHANNELS), dtype=np.uint8
    )
    source = folder / "random.npy"
    np.save(source, pixels)
    return open_images(str(source), image_size, CHANNELS, cache_dir=folder, progress=False)
