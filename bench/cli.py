"""The command line of the suite: options in, a suite run, a table and a JSON file out.

torch is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.resources import main as resources_main
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
PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp32, or bf16 (autocast; the default); repeat for both."),
]
ImageSizesOption = Annotated[
    list[int] | None,
    typer.Option("--image-size", help="Side of the images in pixels (default: 64); repeat."),
]
BatchSizesOption = Annotated[
    list[int] | None,
    typer.Option("--batch-size", help="Images a step (default: 64); repeat for a sweep."),
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


@app.command()
def step(
    device: DeviceOption = "auto",
    image_size: ImageSizesOption = None,
    batch_size: BatchSizesOption = None,
    precision: PrecisionsOption = None,
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

    options = StepOptions(
        device=prepare_device(device, threads),
        image_sizes=tuple(image_size or (64,)),
        batch_sizes=tuple(batch_size or (64,)),
        precisions=require_precisions(precision),
        against=tuple(against or ()),
        seconds=seconds,
        seed=seed,
    )
    finish(run_step(options, report_line), json)


@app.command()
def ops(
    device: DeviceOption = "auto",
    image_size: Annotated[
        list[int] | None,
        typer.Option(help="DCGANs whose layers to measure; repeat (default: 64 and 32)."),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Repeat for a sweep (default: 1, 64 on a CPU; 1 to 2048 on a GPU)."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32 or bf16; repeat for both (the default).")
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            help="Only cases whose name begins so: conv2d, conv_transpose2d, batch_norm_act, "
            "bias_act, discriminator_loss, generator_loss, binary_cross_entropy, passes (fprop, "
            "dgrad and wgrad by themselves), or longer: 'conv2d D 64'."
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Only providers whose name begins so: fastgan, 'fastgan triton', eager, compile."
        ),
    ] = None,
    direction: Annotated[str, typer.Option(help="forward, forward+backward, or both.")] = "both",
    others: Annotated[
        bool, typer.Option(help="Layers of other GANs too (ResNet, U-Net, CycleGAN, odd sizes).")
    ] = True,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="torch.compile among the providers.")
    ] = True,
    module: Annotated[
        str | None,
        typer.Option(
            help="Measure your own layer instead, before and after fastgan.accelerate: "
            "package.module:Name of an nn.Module, or of a class or function that makes one, with "
            "its arguments if it takes any: 'torch.nn:Conv2d(128, 256, 4, 2, 1)'."
        ),
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="With --module: its input's shape, 64x128x32x32.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Time for the rounds of each case and direction.")
    ] = 1.0,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Every operator, forward and forward + backward, on the layers of DCGAN and of other GANs.

    Providers: fastgan's automatic choice and every other implementation of it that serves the
    case, eager PyTorch on contiguous and on channels_last tensors, torch.compile.

    `python -m bench ops --operator conv_transpose2d --batch-size 64 --precision bf16`

    `python -m bench ops --module 'torch.nn:Conv2d(128, 256, 4, 2, 1)' --input 64x128x32x32`
    """
    from bench.operators import BOTH, FORWARD

    target = prepare_device(device, threads)
    precisions = require_precisions(precision, default=("fp32", "bf16"))
    if (module is None) != (input is None):
        raise ConfigError("--module and --input belong together: give both or neither")
    if module is not None and input is not None:
        from bench.own_layer import run_own_layer

        results = run_own_layer(module, input, target, precisions, compiled, seconds, seed)
        finish(results, json)
        return
    from bench.grid import OpsOptions, run_ops

    require_choice("--direction", direction, (FORWARD, BOTH, "both"))
    options = OpsOptions(
        device=target,
        image_sizes=tuple(image_size or (64, 32)),
        batch_sizes=tuple(batch_size or ()),
        precisions=precisions,
        operators=tuple(operator or ()),
        directions=(FORWARD, BOTH) if direction == "both" else (direction,),
        providers=tuple(provider or ()),
        others=others,
        compiled=compiled,
        seconds=seconds,
        seed=seed,
    )
    results = run_ops(options, report_line)
    if not results.rows:
        raise ConfigError("no case is left: see `python -m bench ops --help` for what begins how")
    finish(results, json)


@app.command()
def memory(
    device: DeviceOption = "auto",
    image_size: ImageSizesOption = None,
    batch_size: BatchSizesOption = None,
    precision: PrecisionsOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Peak memory of a training step, weights and optimizer state included.

    Each provider runs in fresh processes. On a CPU the peak is the resident set's above the
    loaded libraries, on a GPU the allocator's.
    """
    from bench.memory import run_memory
    from bench.step import StepOptions

    options = StepOptions(
        device=prepare_device(device, threads),
        image_sizes=tuple(image_size or (64,)),
        batch_sizes=tuple(batch_size or (64,)),
        precisions=require_precisions(precision),
        seed=seed,
    )
    finish(run_memory(options, report_line), json)


@app.command()
def data(
    device: DeviceOption = "auto",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 64,
    images: Annotated[int, typer.Option(min=1, help="How many synthetic JPEG files.")] = 2048,
    workers: Annotated[int, typer.Option(min=0, help="Of the baseline's DataLoader.")] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for the rounds.")] = 10.0,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """The input pipeline: images a second, from files to normalised batches.

    fastgan's packed file and resident set against a DataLoader that decodes JPEG files as the
    PyTorch example does.
    """
    from bench.data import run_data

    if images < batch_size:
        raise ConfigError(f"--images {images} is less than one batch of {batch_size}")
    results = run_data(
        prepare_device(device, threads),
        image_size=image_size,
        batch_size=batch_size,
        seconds=seconds,
        images=images,
        workers=workers,
        seed=seed,
        report=report_line,
    )
    finish(results, json)


@app.command()
def overhead(
    device: DeviceOption = "auto",
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each operator.")] = 2.0,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """What a call costs in Python: each operator, forward + backward, on a few hundred elements.

    Against the torch functions that it replaces; a ratio of 0.67 is 1.5 times their cost.
    """
    from bench.overhead import run_overhead

    target = prepare_device(device, threads)
    finish(run_overhead(target, seconds=seconds, seed=seed, report=report_line), json)


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
            "--json", help="The file, rewritten as results come (default: gpu-check.json)."
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="For all that measures; build and tests come besides.")
    ] = 8.0,
    only: Annotated[list[str] | None, typer.Option(help="Only this part; repeat for more.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not this part; repeat for more.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Walk through every part at tiny sizes; no GPU needed."),
    ] = False,
    tests: Annotated[str, typer.Option(help="What the part tests hands to pytest.")] = "tests",
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
    for name in (*(only or ()), *(skip or ())):
        require_choice("part", name, NAMES)
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


app.command("resources")(resources_main)
