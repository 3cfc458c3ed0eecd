"""The trainer: a step with its images and random numbers, and the loop around it.

`Trainer(config, data).fit()` trains into a run folder; `Trainer.resume(folder).fit()` goes on from
its newest checkpoint and ends with the weights, to the bit, of a run that was never interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from fastgan.data import PackedImages, open_images
from fastgan.errors import ConfigError, DataError, RunError
from fastgan.memory import keep_freed_memory
from fastgan.training.batches import Batches
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.curves import require_tensorboard
from fastgan.training.loop import TrainingLoop
from fastgan.training.run_folder import RunFolder, next_run_folder
from fastgan.training.runner import StepRunner
from fastgan.training.state import TrainingState, find_device


class Trainer:
    """Trains a DCGAN on packed images.

    Args:
        config: every setting; `channels` None takes the data's own.
        data: the images, as `fastgan.data.open_images` packs them, of the configuration's size.
        out: the run folder that `fit` makes; by default the next free one under runs/. (A
            `RunFolder` is taken as it is: that is how `resume` goes on with one.)
        console: where `fit` reports; by default standard output.

    Raises:
        ConfigError: a setting is not allowed, or does not fit the data or this machine.
        DataError: the data set holds fewer images than a batch.
        RunError: `out` already holds something.
        MissingExtraError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: PackedImages,
        out: str | Path | RunFolder | None = None,
        console: Console | None = None,
    ) -> None:
        channels = data.channels if config.channels is None else config.channels
        config = config.replace(channels=channels)
        if (*data.image_size, data.channels) != (*config.image_size, channels):
            raise ConfigError(
                f"the data are {_size(data.image_size, data.channels)}, but the configuration says"
                f" {_size(config.image_size, channels)}"
            )
        self.config, self.data = config, data
        self.console = console if console is not None else Console()
        if not isinstance(out, RunFolder):
            out = RunFolder.new(out or next_run_folder(Path("runs"), Path(data.name).stem))
        self.run = out
        if config.tensorboard:
            require_tensorboard()
        self.device = find_device(config.device)
        if self.device.type == "cpu" and config.keep_memory:
            keep_freed_memory()
        self.batches = Batches(data, config, self.device)
        self.state = TrainingState.initial(config, self.device)
        self.state.make_optimizer_state()
        self.runner = StepRunner(config, self.state, self.batches.resident)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        images: PackedImages | None = None,
        console: Console | None = None,
        **changes: Any,
    ) -> Trainer:
        """The trainer of a run folder at its newest checkpoint.

        Args:
            out: the run folder.
            images: the data; by default opened as the configuration's `data` says.
            console: where `fit` reports.
            changes: settings that differ from config.json, such as `steps`.

        Raises:
            CheckpointError: no run, no checkpoint, or a damaged one.
            ConfigError: a hyperparameter differs from the checkpoint's.
            DataError: the images are not those that the run was trained on.
        """
        run = RunFolder.open(out)
        config = run.read_config().replace(**changes)
        saved = run.newest_checkpoint()
        if saved is None:
            # Killed before its first checkpoint: step 0 is a function of the configuration.
            return cls(config, images if images is not None else open_data(config), run, console)
        checkpoint = load_checkpoint(saved)
        refused = checkpoint.config.changed_hyperparameters(config)
        if refused:
            raise ConfigError(
                f"a resumed run keeps its hyperparameters, but {'; '.join(refused)}:"
                " start a new run to change them"
            )
        if config.steps <= checkpoint.step:
            raise RunError(
                f"{out} has already made {checkpoint.step} of {config.steps} steps:"
                " ask for more with --steps"
            )
        data = images if images is not None else open_data(config)
        if data.digest != checkpoint.data_digest:
            raise DataError(
                f"the images of {config.data} are not those that {out} was trained on:"
                " bring them back, or start a new run"
            )
        trainer = cls(config, data, run, console)
        trainer.state.load(checkpoint.step, checkpoint.tensors)
        return trainer

    def step(self, real: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            real: [D steps * batch, C, H, W]: uint8 as `PackedImages.batch` gives it (flipped if
                the configuration says so, and normalised here), or float32 in [-1, 1], used as is;
                or int64 [D steps * batch], places in the data set where that is resident.

        Returns:
            The metrics of `fastgan.training.step`, 0-dimensional tensors on the device. Nothing
            here waits for the device.

        Raises:
            ConfigError: `real` is none of these.
        """
        self.runner.run(real)
        return self.runner.ring.latest()

    def fit(self) -> bool:
        """Train up to `config.steps`, writing the run folder.

        Returns True when every step was made, False when a signal stopped the run, which then has
        a checkpoint of the step that it stopped at.

        Raises `RunError` where the run diverges (no checkpoint of it is kept), another process
        trains into the folder, or the folder cannot be written.
        """
        loop = TrainingLoop(
            self.config, self.state, self.run, self.batches, self.runner, self.data.digest
        )
        return loop.run_to_end(self.console)


def open_data(config: TrainConfig) -> PackedImages:
    """The images that a configuration names, decoded and packed on first use."""
    return open_images(
        config.data,
        config.image_size,
        config.channels,
        skip_bad=config.skip_bad,
        upscale=config.upscale,
    )


def _size(image_size: tuple[int, int], channels: int) -> str:
    return f"{image_size[0]}x{image_size[1]} with {channels} channel{'s' if channels > 1 else ''}"
