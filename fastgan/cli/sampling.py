"""`fastgan sample`: images from a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    run: Annotated[Path, typer.Argument(help="Run folder that `fastgan train` made.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same images.")] = 0,
    out: Annotated[
        Path,
        typer.Option(help="A name that ends in .png gets a grid, any other a folder of images."),
    ] = Path("samples.png"),
    step: Annotated[
        int | None,
        typer.Option(help="Which checkpoint, by its step.", show_default="the newest"),
    ] = None,
    ema: Annotated[
        bool,
        typer.Option("--ema/--no-ema", help="Averaged weights, or those of the last step."),
    ] = True,
    device: Annotated[
        str, typer.Option(help="Where to draw: cpu, cuda, cuda:1, or auto (a GPU if any).")
    ] = "auto",
) -> None:
    """Draw images from a run's generator.

    By default its averaged weights (EMA) are used, which make steadier images, with the running
    statistics of batch norm: an image does not depend on which others are drawn beside it.

    Examples:

    - `fastgan sample runs/photos --count 100 --seed 7 --out grid.png`

    - `fastgan sample runs/photos --count 5000 --out generated/`
    """
    from fastgan.errors import CheckpointError
    from fastgan.training import RunFolder
    from fastgan.training.randomness import latents
    from fastgan.training.samples import generate, load_generator, write_images
    from fastgan.training.state import find_device

    folder = RunFolder.open(run)
    path = folder.newest_checkpoint() if step is None else folder.checkpoints / f"{step:08d}"
    if path is None or not path.is_dir():
        wanted = "no checkpoint yet" if step is None else f"no checkpoint of step {step}"
        raise CheckpointError(f"{run} holds {wanted}: train on with `fastgan resume {run}`")
    place = find_device(device)
    generator, config = load_generator(path, "ema" if ema else "generator", place)
    z = latents(seed, "sample command", 0, (count, config.latent_dim)).to(place)
    write_images(generate(generator, z), out)
    typer.echo(f"{count} images of step {int(path.name)} in {out}")
