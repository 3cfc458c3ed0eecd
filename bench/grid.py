"""Which operators meet which shapes, and the run over them that `bench ops` makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import torch

from bench.ceilings import measure_ceilings
from bench.method import first_line
from bench.operators import (
    BOTH,
    FORWARD,
    Subject,
    adversarial_loss,
    batch_norm_act,
    bias_act,
    binary_cross_entropy,
    convolution,
)
from bench.ops import Way, measure_subject, ways_of
from bench.passes import convolution_passes
from bench.results import ERROR, Results, Row, capture_environment
from bench.shapes import (
    OTHER_CONVOLUTIONS,
    OTHER_NORMS,
    dcgan_activations,
    dcgan_convolutions,
    dcgan_norms,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_BATCHES = {"cpu": (1, 64), "cuda": (1, 16, 128, 512, 2048)}
Build = Callable[[], list[tuple[Subject, list[Way]]]]


@dataclass(frozen=True)
class OpsOptions:
    """What `bench ops` was asked for.

    Attributes:
        device: where to run.
        image_sizes: DCGANs whose layers to measure.
        batch_sizes: batches; () for the device's own list.
        precisions: among "fp32" and "bf16".
        operators: names, or the beginnings of names, of cases to keep; () for all.
        directions: "forward", "forward+backward".
        providers: beginnings of providers' names to keep; () for all.
        others: layers of other GANs too.
        passes: fprop, dgrad and wgrad by themselves too.
        compiled: torch.compile among the providers.
        seconds: time for the timed rounds of each case and direction.
        seed: of the inputs.
        width: channels of the networks' outer hidden maps.
        tiny: measure the ceilings with tiny buffers.
        timed: False checks correctness alone.
    """

    device: torch.device
    image_sizes: tuple[int, ...] = (64, 32)
    batch_sizes: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "bf16")
    operators: tuple[str, ...] = ()
    directions: tuple[str, ...] = (FORWARD, BOTH)
    providers: tuple[str, ...] = ()
    others: bool = True
    passes: bool = True
    compiled: bool = True
    seconds: float = 1.0
    seed: int = 0
    width: int = 64
    tiny: bool = False
    timed: bool = True

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes to run."""
        return self.batch_sizes or DEFAULT_BATCHES[self.device.type]


@dataclass(frozen=True)
class Task:
    """Something to build and measure: its name, and a function that builds it when its turn comes.

    Inputs of large batches do not fit in memory together, so nothing is built ahead.
    """

    name: str
    build: Build


def tasks(options: OpsOptions) -> Iterator[Task]:
    """Every case of the grid, batch by batch, that the options keep."""
    for batch in options.batches:
        for precision in options.precisions:
            for task in _tasks_at(options, batch, precision):
                kept = options.operators
                if not kept or any(task.name.startswith(name) for name in kept):
                    yield task


def run_ops(options: OpsOptions, report: Callable[[str], None] = print) -> Results:
    """Measure the grid; `report` takes a line for each case."""
    results = Results("ops", capture_environment(options.device, options.seed))
    if options.timed:
        report("measuring the ceilings: a large copy, large matrix products")
        results.ceilings = measure_ceilings(options.device, tiny=options.tiny)
    for task in tasks(options):
        report(task.name)
        results.rows += run_task(task, options, results.ceilings)
    return results


def run_task(
    task: Task,
    options: OpsOptions,
    ceilings: dict[str, float],
    exclude: Container[str] = (),
) -> list[Row]:
    """Measure one task, without the providers in `exclude`.

    A task that raises outside of its providers (no memory for its inputs, say) gives one ERROR
    row, so that a run goes on.
    """
    rows = []
    try:
        for subject, ways in task.build():
            rows += measure_subject(
                subject,
                [way for way in ways if way.name not in exclude],
                ceilings,
                seconds=options.seconds,
                directions=[name for name in options.directions if name in subject.work],
                timed=options.timed,
            )
    except Exception as error:
        rows.append(Row(task.name, "all", status=ERROR, message=first_line(error)))
    if options.compiled:
        torch.compiler.reset()
    return rows


def _tasks_at(options: OpsOptions, batch: int, precision: str) -> Iterator[Task]:
    dtype, device, seed = DTYPES[precision], options.device, options.seed
    seen: set[str] = set()

    def task(case: str, subject: Callable[[], Subject]) -> Iterator[Task]:
        name = f"{case} batch {batch} {precision}"
        if name not in seen:  # the smaller DCGANs share layers with the larger
            seen.add(name)
            yield Task(name, functools.partial(_with_ways, subject, options))

    bind = functools.partial
    for size in options.image_sizes:
        for layer in dcgan_convolutions(size, options.width):
            kind = "conv_transpose2d" if layer.transposed else "conv2d"
            yield from task(
                f"{kind} {layer.name}", bind(convolution, layer, batch, dtype, device, seed)
            )
        for map_layer in dcgan_norms(size, options.width):
            yield from task(
                f"batch_norm_act {map_layer.name}",
                bind(batch_norm_act, map_layer, batch, dtype, device, seed),
            )
        for map_layer in dcgan_activations(size, options.width):
            yield from task(
                f"bias_act {map_layer.name}", bind(bias_act, map_layer, batch, dtype, device, seed)
            )
    for which in ("discriminator_loss", "generator_loss"):
        yield from task(which, bind(adversarial_loss, which, batch, dtype, device, seed))
    yield from task("binary_cross_entropy", bind(binary_cross_entropy, batch, dtype, device, seed))
    if options.passes and FORWARD in options.directions:
        yield from _pass_tasks(options, batch, precision)
    if options.others:
        for layer in OTHER_CONVOLUTIONS:
            kind = "conv_transpose2d" if layer.transposed else "conv2d"
            yield from task(
                f"{kind} {layer.name}", bind(convolution, layer, batch, dtype, device, seed)
            )
        for map_layer in OTHER_NORMS:
            yield from task(
                f"batch_norm_act {map_layer.name}",
                bind(batch_norm_act, map_layer, batch, dtype, device, seed),
            )


def _pass_tasks(options: OpsOptions, batch: int, precision: str) -> Iterator[Task]:
    """The passes of the strided convolutions; a transposed one has the same three."""
    for size in options.image_sizes:
        for layer in dcgan_convolutions(size, options.width):
            if layer.transposed or layer.stride == 1:
                continue

            def build(layer=layer) -> list[tuple[Subject, list[Way]]]:  # type: ignore[no-untyped-def]
                pairs = convolution_passes(
                    layer, batch, DTYPES[precision], options.device, options.seed
                )
                return list(pairs)

            yield Task(f"passes {layer.name} batch {batch} {precision}", build)


def _with_ways(
    build: Callable[[], Subject], options: OpsOptions
) -> list[tuple[Subject, list[Way]]]:
    subject = build()
    return [(subject, list(ways_of(subject, options.compiled, options.providers)))]
