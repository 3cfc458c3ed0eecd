"""What a person sees while training: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from fastgan.training.config import TrainConfig


class TrainingProgress:
    """Shows step, images/s, losses, D(x), D(G(z)) before / after D's update, and the time left.

    Args:
        console: where to show them; its kind decides between bar and lines.
        config: how many steps, how many images in each, how many steps between plain lines.
        first: the step that training starts from.
        placement: where the images wait.
    """

    def __init__(self, console: Console, config: TrainConfig, first: int, placement: str) -> None:
        self.console, self.last, self.every = console, config.steps, config.log_every
        self.images_per_step = config.batch_size * config.discriminator_steps
        self.images_per_second = 0.0
        self._read_step, self._read_time = first, time.perf_counter()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(f"{placement} images, step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("left"),
                TimeLeft(compact=True),
                console=console,
                # Redrawing takes time from the step on a machine of few cores.
                refresh_per_second=2,
            )
            self._task = self._bar.add_task(
                "train", total=config.steps, completed=first, numbers=""
            )

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        self._read_time = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """A line above the bar."""
        self.console.print(sentence, soft_wrap=True, highlight=False, markup=False)

    def advance(self, step: int) -> None:
        """A step was made (or, on a GPU, launched)."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, row: dict[str, float]) -> None:
        """The newest metrics that were read from the device."""
        step, now = int(row["step"]), time.perf_counter()
        steps, seconds = step - self._read_step, now - self._read_time
        if steps > 0:
            self.images_per_second = steps * self.images_per_step / max(seconds, 1e-9)
            self._read_step, self._read_time = step, now
        numbers = (
            f"{self.images_per_second:,.0f} images/s"
            f"  loss D {row['loss_d']:.3f} G {row['loss_g']:.3f}"
            f"  D(x) {row['d_real']:.3f}"
            f"  D(G(z)) {row['d_fake_before']:.3f} / {row['d_fake_after']:.3f}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step % self.every == 0 or step == self.last:
            left = (self.last - step) * self.images_per_step / max(self.images_per_second, 1e-9)
            self.say(f"step {step}/{self.last}  {numbers}  left {_duration(left)}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within: time that is not training's, and does not count in images/s."""
        began = time.perf_counter()
        yield
        self._read_time += time.perf_counter() - began


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
