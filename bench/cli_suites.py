"""The commands that measure: options in, a suite run, a table and a JSON file out."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli_options import (
    BatchSizesOption,
    DeviceOption,
    ImageSizesOption,
    JsonOption,
    PrecisionsOption,
    SeedOption,
    ThreadsOption,
    finish,
    prepare_device,
    report_line,
    require_choice,
    require_image_sizes,
    require_precisions,
)
from fastgan.errors import ConfigError


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
    switches: Annotated[
        bool,
        typer.Option(
            "--switches",
            help="Also fastgan's step with one D pass alone, with weights cast once alone, and "
            "with neither; and fastgan's layers in the plain script's loop and in best eager's.",
        ),
    ] = False,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate",
            help="Each provider in a process of its own (in turns all the same), with memory of "
            "its own, as its user has it. On a CPU fastgan's trainer keeps the memory that a "
            "step frees, which in one process makes the baselines faster too.",
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time for the timed rounds of each case.")
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
        image_sizes=require_image_sizes(image_size),
        batch_sizes=tuple(batch_size or (64,)),
        precisions=require_precisions(precision),
        against=tuple(against or ()),
        seconds=seconds,
        seed=seed,
        switches=switches,
        isolate=isolate,
    )
    finish(run_step(options, report_line), json)


def ops(
    device: DeviceOption = "auto",
    image_size: Annotated[
        list[int] | None,
        typer.Option(
            help="Side in pixels of the DCGANs whose layers to measure, a multiple of 4 from 16 "
            "up (default: 64 and 32); repeat for more."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Images a call (default: 1 and 64 on a CPU, 1 to 2048 on a GPU); repeat for a "
            "sweep.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, or bf16; repeat for both (the default).")
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
        str | None,
        typer.Option("--input", help="With --module: its input's shape, such as 64x128x32x32."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Time for the timed rounds of each case and direction.")
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
        image_sizes=require_image_sizes(image_size, default=(64, 32)),
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
        raise ConfigError(
            "no case is left by --operator and --provider: `python -m bench ops --help` says how "
            "their names begin"
        )
    finish(results, json)


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
        image_sizes=require_image_sizes(image_size),
        batch_sizes=tuple(batch_size or (64,)),
        precisions=require_precisions(precision),
        seed=seed,
    )
    finish(run_memory(options, report_line), json)


def data(
    device: DeviceOption = "auto",
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 64,
    images: Annotated[int, typer.Option(min=1, help="How many synthetic JPEG files.")] = 2048,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes of the baseline's DataLoader.")
    ] = 2,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time for the timed rounds.")] = 10.0,
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


def overhead(
    device: DeviceOption = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Time for the timed rounds of each.")
    ] = 2.0,
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
