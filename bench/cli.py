"""The command line of the suite: the application, and the commands on result files.

torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import cli_suites
from bench.cli_options import DeviceOption, prepare_device, report_line, require_choice
from bench.resources import main as resources_main
from fastgan.errors import ConfigError

app = typer.Typer(
    name="bench",
    help=(
        "Measure what is faster, where and why. Providers take turns; a result is "
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


for _suite in (
    cli_suites.ops,
    cli_suites.step,
    cli_suites.memory,
    cli_suites.data,
    cli_suites.overhead,
):
    app.command()(_suite)
app.command("resources")(resources_main)


@app.command()
def report(
    folder: Annotated[
        Path | None, typer.Option(help="Result files (default: bench/results).")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="The file with the marked blocks (default: README.md).")
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw the PNG plots beside the result files.")] = True,
) -> None:
    """Plots and README's tables, from the committed results and nothing else.

    A block between `<!-- bench:begin step -->` and `<!-- bench:end step -->` is replaced; the
    names are step, ops, memory, data and overhead, or tables for all of them.
    """
    from bench.plots import draw_all
    from bench.report import write_readme
    from bench.results import RESULTS, ROOT, read_all

    source, target = folder or RESULTS, readme or ROOT / "README.md"
    if not target.is_file():
        raise ConfigError(f"--readme {target} is not a file")
    if not source.is_dir():
        raise ConfigError(f"--folder {source} is not a folder of result files")
    results = read_all(source)
    if not results:
        typer.echo(f"{source} holds no result file: measure with --json {source}")
    if plots:
        for one in results:
            for path in draw_all(one, source):
                typer.echo(f"drawn: {path}")
    changed = write_readme(target, results)
    typer.echo(f"{target}: {'tables brought up to date' if changed else 'already up to date'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The earlier result file.")],
    b: Annotated[Path, typer.Argument(help="The later one.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what did not move beyond the spread.")
    ] = False,
) -> None:
    """What moved beyond the spread between two result files of a suite."""
    from collections import Counter

    from bench.compare import changes_table, warnings
    from bench.compare import compare as compare_results
    from bench.results import read
    from bench.tables import bench_console

    old, new = read(a), read(b)
    if old.suite != new.suite:
        raise ConfigError(
            f"{a} holds results of {old.suite} and {b} of {new.suite}: compare two of one suite"
        )
    console = bench_console()
    for line in warnings(old, new):
        console.print(line, style="yellow", highlight=False)
    changes = compare_results(old, new)
    if everything or any(change.verdict != "same" for change in changes):
        console.print(changes_table(changes, everything))
    counts = Counter(change.verdict for change in changes)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


@app.command("gpu-check")
def gpu_check(
    device: DeviceOption = "auto",
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="The file, rewritten as results come (default: gpu-check.json); a folder gets "
            "DEVICE-gpu-check.json.",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(min=0.1, help="Time for all that measures; build and tests not counted."),
    ] = 8.0,
    only: Annotated[list[str] | None, typer.Option(help="Only this part; repeat for more.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this part; repeat for more.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Walk through every part at tiny sizes; no GPU needed."),
    ] = False,
    tests: Annotated[str, typer.Option(help="What pytest collects in the part tests.")] = "tests",
) -> None:
    """Everything that only a GPU can tell: one command, one JSON file.

    Parts, in order: build, tests (`pytest -m gpu`), correctness (every implementation against
    float64), step, ops (cuDNN's passes too), memory, overhead, step-compiled, ops-compiled (with
    torch.compile). Each runs in a process of its own with a limit of its own, and rows are
    written as they come: a part that fails or hangs costs only itself.

    `python -m bench gpu-check --json bench/results/`
    """
    from bench.gpu_check import NAMES, CheckOptions, run_gpu_check
    from bench.results import PART, Results, capture_environment
    from bench.tables import bench_console, show

    target = prepare_device(device)
    if target.type != "cuda" and not dry_run:
        raise ConfigError(
            "gpu-check needs a CUDA device, and this machine offers none: "
            "--dry-run walks through it on the CPU"
        )
    for option, names in (("--only", only), ("--skip", skip)):
        for name in names or ():
            require_choice(option, name, NAMES)
    path = json or Path("gpu-check.json")
    if path.is_dir():
        path = path / Results("gpu-check", capture_environment(target, 0)).default_name
    options = CheckOptions(
        device=target,
        file=path,
        minutes=minutes,
        parts=tuple(
            name for name in NAMES if (not only or name in only) and name not in (skip or ())
        ),
        tiny=dry_run,
        tests=tests,
    )
    results = run_gpu_check(options, report_line)
    console = bench_console()
    show(results, console)
    for row in results.rows:
        if row.case == PART:
            line = f"part {row.provider}: {row.status}, {row.median:.0f} s. {row.message}"
            console.print(line, highlight=False, markup=False)
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
