"""What a run shows of its metrics besides numbers: the curves' PNG, TensorBoard event files."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastgan.errors import MissingExtraError
from fastgan.training.step import METRICS

# Beyond this many points a line only gets slower to draw, not finer.
_POINTS = 1000

_PANELS = (
    ("loss", (("loss_d", "D"), ("loss_g", "G"))),
    (
        "mean output of D",
        (
            ("d_real", "D(x)"),
            ("d_fake_before", "D(G(z)) before D's update"),
            ("d_fake_after", "D(G(z)) after"),
        ),
    ),
)


def can_draw() -> bool:
    """Whether matplotlib (the 'plot' extra) is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(rows: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of the losses and of D's outputs against the step; long runs are averaged in bins."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins = np.array_split(np.arange(len(rows)), min(len(rows), _POINTS))
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, lines) in zip(figure.subplots(2, 1, sharex=True), _PANELS, strict=True):
        for key, name in lines:
            values = np.array([row[key] for row in rows])
            steps = np.array([row["step"] for row in rows])
            axes.plot(
                [steps[part].mean() for part in bins],
                [values[part].mean() for part in bins],
                label=name,
                linewidth=1,
            )
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)
    axes.set_xlabel("step")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def require_tensorboard() -> None:
    """Raise `MissingExtraError` where tensorboard (the 'log' extra) is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError(
            "tensorboard is not installed: pip install 'fastgan[log]', or leave out --tensorboard"
        )


class TensorBoard:
    """Event files of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after `step` belong to the interrupted past of a resumed run.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, rows: Sequence[dict[str, float]], images_per_second: float) -> None:
        """Add the metrics of some steps, and the speed at the last of them."""
        for row in rows:
            for name in METRICS:
                self.writer.add_scalar(name, row[name], int(row["step"]))
        if rows:
            self.writer.add_scalar("images_per_second", images_per_second, int(rows[-1]["step"]))

    def add_grid(self, grid: np.ndarray, step: int) -> None:
        """Add a sample grid, uint8 [H, W] or [H, W, C]."""
        form = "HW" if grid.ndim == 2 else "HWC"
        self.writer.add_image("samples", grid, step, dataformats=form)

    def close(self) -> None:
        self.writer.close()
