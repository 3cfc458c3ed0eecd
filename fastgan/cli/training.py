"""`fastgan train` and `fastgan resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastgan.cli.options import given, with_settings

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer


@with_settings()
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Images: a folder, a .zip, a .npy or .npz of uint8, a .parquet, a Hugging Face"
            " data set (owner/name), or the word digits: handwritten digits that need no download."
        ),
    ] = "digits",
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder to make.", show_default="the next free one under runs/"),
    ] = None,
    **settings: Any,
) -> None:
    """Train a DCGAN on a folder of images (or a zip, an array, a data set).

    Images are cut to the centre, resized and packed once; later runs start at once. The run folder
    gets sample grids, loss curves, metrics and checkpoints. Ctrl-C stops after saving; a second
    Ctrl-C stops at once; either way `fastgan resume` goes on as if nothing had happened.

    Examples:

    - `fastgan train` (the digits, to see it work)

    - `fastgan train photos/ --image-size 64 --out runs/photos`

    - `fastgan train photos.zip --image-size 64x96 --precision bf16 --batch-size 128`

    - `fastgan train mnist.zip --preset book --steps 6000` (the networks of the book)
    """
    from fastgan.training import RunFolder, TrainConfig, Trainer
    from fastgan.training.run_folder import next_run_folder
    from fastgan.training.trainer import open_data

    chosen = given(settings)
    config = TrainConfig.from_preset(chosen.pop("preset", "dcgan"), data=data, **chosen)
    # Before the images are decoded, which may take minutes.
    run = RunFolder.new(out or next_run_folder(Path("runs"), Path(data).stem or "images"))
    _fit(Trainer(config, open_data(config), run))


@with_settings(resuming=True)
def resume(
    run: Annotated[Path, typer.Argument(help="Run folder that `fastgan train` made.")],
    data: Annotated[
        str | None,
        typer.Option(help="Where the images are, if they have moved.", show_default="as before"),
    ] = None,
    **settings: Any,
) -> None:
    """Go on with a run from its newest checkpoint, exactly as if it had never stopped.

    The weights end equal, to the bit, to those of an uninterrupted run on the same device. What may
    change is listed below, and stays as it was where it is not given; hyperparameters may not
    change, and are refused by name.

    Examples:

    - `fastgan resume runs/photos`

    - `fastgan resume runs/photos --steps 40000 --checkpoint-every 1000`
    """
    from fastgan.training import Trainer

    changes = given({"data": data, **settings})
    _fit(Trainer.resume(run, **changes))


def _fit(trainer: Trainer) -> None:
    config, data, say = trainer.config, trainer.data, trainer.console.print
    height, width = data.image_size
    channels = "1 channel" if data.channels == 1 else f"{data.channels} channels"
    skipped = f" ({data.skipped} bad ones left out)" if data.skipped else ""
    start = f"from step {trainer.state.step} " if trainer.state.step else ""
    say(
        f"{data.name}: {len(data):,} images{skipped}, {height}x{width}, {channels}",
        f"training {start}to step {config.steps} on {trainer.device} in {config.precision},"
        f" {trainer.batches.placement} images, into {trainer.run.path}",
        sep="\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    finished = trainer.fit()
    where = trainer.run.path
    say(
        f"done: samples in {trainer.run.samples}; draw more with `fastgan sample {where}`"
        if finished
        else f"stopped and saved at step {trainer.state.step}: go on with `fastgan resume {where}`",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
