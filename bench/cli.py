"""The command line of the suite: options in, a suite run, a table and a JSON file out.

torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastgan.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from bench.results import Results

app = typer.Typer(
    name="bench",
    help=(
        "Measure what is faster, where and why. Providers take turns in one process; a result is "
        "compared with float64 before it is timed; a ratio is how many times better than the best "
        "baseline, above 1 is better. Every suite writes JSON with --json, which `report` draws "
        "and `compare` compares."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def choose_suite() -> None:
    """Take the name of a suite."""


DeviceOption = Annotated[
    str, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1, or auto (a GPU if any).")
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write the results here; a folder gets <device>-<suite>.json. "
        "bench/results/ is where `report` looks.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of weights, images and latents.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads (default: torch's own).")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Arithmetic: fp32, or bf16 (autocast).")
]


def prepare_device(name: str, threads: int | None = None) -> torch.device:
    """The device that `name` asks for, with torch's switches as every suite wants them.

    Raises:
        ConfigError: this machine does not have it.
    """
    import torch

    from fastgan.training.state import find_device

    device = find_device(name)
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        # The same for every provider: TF32 allowed, and cuDNN free to try its algorithms.
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def require_choice(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value` if it is allowed, else a ConfigError that says what is."""
    if value not in allowed:
        raise ConfigError(f"{option} {value!r} is not known: choose {' or '.join(allowed)}")
    return value


def finish(results: Results, json: Path | None) -> None:
    """Show a suite's results and write them where the user wants them."""
    from bench.tables import bench_console, show

    console = bench_console()
    show(results, console)
    if json is not None:
        path = json / results.default_name if json.is_dir() else json
        console.print(f"written: {results.write(path)}", highlight=False, soft_wrap=True)


def report_line(line: str) -> None:
    """One dim line on standard error for each thing begun."""
    typer.secho(line, err=True, dim=True)


@app.command()
def step(
    device: DeviceOption = "auto",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images a step; repeat for a sweep (default: 64).")
    ] = None,
    precision: PrecisionOption = "bf16",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this baseline; repeat for more. On any device: 'plain script' (the "
            "PyTorch example to the letter, fp32), 'best eager' (the precision asked for, "
            "channels_last, fused Adam, no wasted gradients), 'compile'. On a CPU also 'best "
            "eager fp32'; on a GPU 'best eager, graph' and 'compile, graph' (CUDA graphs)."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time for each batch size's timed rounds.")
    ] = 60.0,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """A whole DCGAN training step: both networks, the losses, both optimizers, random latents.

    fastgan's Trainer against the same step in plain PyTorch. Before anything is timed, one step
    of each provider is compared with a float64 step: losses, gradients, updates and running
    statistics.

    `python -m bench step --device cpu --image-size 64 --batch-size 64 --json out.json`
    """
    from bench.step import StepOptions, run_step

    require_choice("--precision", precision, ("fp32", "bf16"))
    options = StepOptions(
        device=prepare_device(device, threads),
        image_size=image_size,
        batch_sizes=tuple(batch_size or (64,)),
        precision=precision,
        against=tuple(against or ()),
        seconds=seconds,
        seed=seed,
    )
    finish(run_step(options, report_line), json)
