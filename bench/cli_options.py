"""What the commands share: options, the device made ready, results shown and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastgan.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from bench.results import Results

DeviceOption = Annotated[
    str, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1, or auto (a GPU if any).")
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write the results here; a folder gets DEVICE-SUITE.json. bench/results/ is where "
        "`report` looks.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads (default: torch's own).")
]
PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp32, or bf16 (autocast; the default); repeat for both."),
]
ImageSizesOption = Annotated[
    list[int] | None,
    typer.Option(
        "--image-size",
        help="Side of the images in pixels, a multiple of 4 from 16 up (default: 64); repeat for "
        "a sweep.",
    ),
]
BatchSizesOption = Annotated[
    list[int] | None,
    typer.Option("--batch-size", min=1, help="Images a step (default: 64); repeat for a sweep."),
]


def prepare_device(name: str, threads: int | None = None) -> torch.device:
    """The device that `name` asks for, with torch's switches as every suite wants them.

    Raises:
        ConfigError: this machine does not have it.
    """
    import torch

    from fastgan.memory import keep_freed_memory
    from fastgan.training.state import find_device

    device = find_device(name)
    if device.type == "cpu":
        # Page faults of fresh outputs would be timed with every provider, and drown the kernels.
        keep_freed_memory()
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
        words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise ConfigError(f"{option} {value!r} is not known: choose {words}")
    return value


def require_image_sizes(
    values: list[int] | None, default: tuple[int, ...] = (64,)
) -> tuple[int, ...]:
    """The image sizes asked for, each one that a DCGAN can have."""
    from fastgan.models import plan_stages

    sizes = tuple(values or default)
    for size in sizes:
        plan_stages(size, size)
    return sizes


def require_precisions(
    values: list[str] | None, default: tuple[str, ...] = ("bf16",)
) -> tuple[str, ...]:
    """The precisions asked for, each a known one."""
    return tuple(
        require_choice("--precision", value, ("fp32", "bf16")) for value in values or default
    )


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
