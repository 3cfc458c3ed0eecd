"""The loop around the step: read metrics, draw samples, save checkpoints, stop when asked.

What it records of a step is a function of that step, so a run that was interrupted and resumed
leaves the metrics, weights and grids of one that was not. Losses are read from the device once an
interval; a run that has diverged is noticed there, and always before a checkpoint is written.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from fastgan.errors import RunError
from fastgan.training.batches import Batches
from fastgan.training.checkpoint import save_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.curves import TensorBoard, can_draw, draw_curves
from fastgan.training.interruption import stopping_on_signals
from fastgan.training.progress import TrainingProgress
from fastgan.training.randomness import latents
from fastgan.training.run_folder import RunFolder, replace_file
from fastgan.training.runner import StepRunner
from fastgan.training.samples import generate, image_grid, png_bytes
from fastgan.training.state import TrainingState
from fastgan.training.step import METRICS

Metrics = dict[str, float]

# A slow run reads its losses at least this often, so that it does not look dead.
_SECONDS_BETWEEN_READINGS = 2.0


@dataclass
class TrainingLoop:
    """One call of `Trainer.fit`: `runner` makes the steps, what they leave goes to `run`."""

    config: TrainConfig
    state: TrainingState
    run: RunFolder
    batches: Batches
    runner: StepRunner
    data_digest: str
    board: TensorBoard | None = field(default=None, init=False)

    def run_to_end(self, console: Console) -> bool:
        """Train up to `config.steps`; False where a signal stopped the run before."""
        config, state, run = self.config, self.state, self.run
        with run.training(config), stopping_on_signals() as stop:
            run.truncate_metrics(state.step)
            if config.tensorboard:
                self.board = TensorBoard(run.tensorboard, state.step)
            first, read_step, read_at = state.step + 1, state.step, time.monotonic()
            with (
                TrainingProgress(console, config, state.step, self.batches.placement) as progress,
                self.batches.ahead(state.step, config.steps) as batches,
            ):
                for real in batches:
                    self.runner.run(real)
                    if state.step == first and self.runner.engine is not None:
                        progress.say(f"the step is {self.runner.how}")
                    progress.advance(state.step)
                    ending = stop.asked or state.step == config.steps
                    sampling = ending or state.step % config.sample_every == 0
                    saving = ending or state.step % config.checkpoint_every == 0
                    reading = sampling or saving or state.step % config.log_every == 0
                    if reading or time.monotonic() - read_at > _SECONDS_BETWEEN_READINGS:
                        rows = self.runner.ring.read(state.step - read_step)
                        self._read_metrics(rows, progress)
                        read_step, read_at = state.step, time.monotonic()
                    with progress.paused():
                        if saving:
                            self._save()
                        if sampling:
                            self._draw()
                    if ending:
                        break
            if self.board is not None:
                self.board.close()
        return state.step == config.steps

    def _read_metrics(self, values: list[Metrics], progress: TrainingProgress) -> None:
        """Record the metrics of the steps since the last reading, which end at this one."""
        last = self.state.step
        first = last - len(values) + 1
        rows, problem = _finite([{"step": first + i, **row} for i, row in enumerate(values)])
        if problem is None and not bool(self.state.finite(optimizers=False)):
            problem = f"a weight is not finite after step {last}"
        self.run.append_metrics(rows)
        if rows:
            progress.show(rows[-1])
            if self.board is not None:
                self.board.add(rows, progress.images_per_second)
        if problem is not None:
            raise self._diverged(problem)

    def _save(self) -> None:
        config, state = self.config, self.state
        if not bool(state.finite(optimizers=True)):
            raise self._diverged(f"an optimizer's state is not finite after step {state.step}")
        with self.run.writing():
            save_checkpoint(
                self.run.checkpoints,
                state.step,
                state.tensors(),
                config,
                self.data_digest,
                config.keep_checkpoints,
            )

    def _draw(self) -> None:
        config, state, run = self.config, self.state, self.run
        shape = (config.sample_count, config.latent_dim)
        z = latents(config.seed, "samples", 0, shape).to(state.device)
        grid = image_grid(generate(state.averaged_generator, z))
        with run.writing():
            replace_file(run.samples / f"{state.step:08d}.png", png_bytes(grid))
            if can_draw():
                replace_file(run.curves, draw_curves(run.read_metrics()))
        if self.board is not None:
            self.board.add_grid(np.asarray(grid), state.step)

    def _diverged(self, problem: str) -> RunError:
        kept = self.run.newest_checkpoint()
        last = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        return RunError(
            f"training has diverged: {problem}; {last}: start a new run with lower learning rates"
        )


def _finite(rows: list[Metrics]) -> tuple[list[Metrics], str | None]:
    """The rows before the first that is not finite, and what is wrong with that one."""
    for index, row in enumerate(rows):
        for name in METRICS:
            if not math.isfinite(row[name]):
                return rows[:index], f"{name} is {row[name]} at step {row['step']}"
    return rows, None
