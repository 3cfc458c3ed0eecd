"""`bench step`: a whole DCGAN training step, fastgan's against the same step in plain PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bench.baselines import PlainStep, Recipe, StepRecord, Workload, recipes, with_layers
from bench.ceilings import measure_ceilings
from bench.gate import Verdict
from bench.method import Contestant, first_line, race
from bench.processes import Worker
from bench.results import Results, Row, capture_environment
from bench.rows import Entry, rows_of
from bench.shapes import step_passes
from bench.step_gate import ExactStep, judge_step
from fastgan.errors import ConfigError

Report = Callable[[str], None]


@dataclass(frozen=True)
class StepOptions:
    """What `bench step` was asked for.

    Attributes:
        device: where to run.
        image_sizes: sides of the images in pixels.
        batch_sizes: one case each, at every image size and precision.
        precisions: among "fp32" and "bf16".
        against: names of baselines, or () for all of the device's.
        seconds: time for the timed rounds of each case.
        seed: of weights, images and latents.
        width: channels of the networks' outer hidden maps.
        tiny: measure the ceilings with tiny buffers (a walk through the code).
        switches: also fastgan's step with each of its switches alone, and its layers without it.
        isolate: each provider in a process of its own, with memory of its own.
    """

    device: torch.device
    image_sizes: tuple[int, ...] = (64,)
    batch_sizes: tuple[int, ...] = (64,)
    precisions: tuple[str, ...] = ("bf16",)
    against: tuple[str, ...] = ()
    seconds: float = 60.0
    seed: int = 0
    width: int = 64
    tiny: bool = False
    switches: bool = False
    isolate: bool = False

    def baselines(self, precision: str) -> list[Recipe]:
        """The baselines asked for, at a precision.

        Raises:
            ConfigError: a name is not one of the device's baselines.
        """
        offered = {recipe.name: recipe for recipe in recipes(self.device, precision)}
        for name in self.against:
            if name not in offered:
                raise ConfigError(
                    f"--against {name!r} is no baseline on {self.device.type}: "
                    f"choose among {', '.join(map(repr, offered))}"
                )
        return [offered[name] for name in self.against or offered]


class StepProvider(Protocol):
    """A way to make a training step: `record` for the gate, `program` for the clock."""

    name: str
    ours: bool
    precision: str
    implementation: str

    def record(self, workload: Workload) -> StepRecord:
        """One step from the initial weights."""

    def program(self, workload: Workload) -> Callable[[], object]:
        """What is timed: one call, one step."""


class BaselineProvider:
    """A recipe of bench/baselines.py; `program` goes on with what `record` has built."""

    implementation = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.name, self.ours = recipe, recipe.name, recipe.layers
        self.precision = recipe.precision
        self._built: PlainStep | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": None}

    def record(self, workload: Workload) -> StepRecord:
        """One step of a fresh program on the workload's latents."""
        self._built = PlainStep(self.recipe, workload)
        return self._built.record(workload.latents())

    def program(self, workload: Workload) -> Callable[[], object]:
        """One call, one step; a graph's replay where the recipe captures."""
        if self._built is None or self._built.workload != workload:
            self._built = PlainStep(self.recipe, workload)
        return self._built.program()


def all_providers(options: StepOptions, precision: str) -> list[StepProvider]:
    """fastgan, its parts one by one if asked for, and the baselines, at a precision."""
    from bench.fastgan_step import SWITCHES, FastganProvider

    ours: list[StepProvider] = [FastganProvider(precision)]
    if options.switches:
        ours += [FastganProvider(precision, name, **each) for name, each in SWITCHES.items()]
        ours += map(BaselineProvider, with_layers(precision))
    return [*ours, *map(BaselineProvider, options.baselines(precision))]


def run_step(
    options: StepOptions,
    report: Report = print,
    providers: Callable[[StepOptions, str], Sequence[StepProvider]] = all_providers,
) -> Results:
    """Measure the step at every image size, precision and batch size.

    Args:
        options: what to measure.
        report: takes a line for each thing begun.
        providers: what to compare at a precision.

    Raises:
        ConfigError: a baseline is not known, or processes of their own are wanted on a GPU.
    """
    for precision in options.precisions:
        options.baselines(precision)  # a misspelt name must not wait for the first measurement
    if options.isolate and options.device.type != "cpu":
        raise ConfigError(f"--isolate is for a CPU, not for {options.device.type}")
    suite = "step-isolated" if options.isolate else "step"
    results = Results(suite, capture_environment(options.device, options.seed))
    report("measuring the ceilings: a large copy, large matrix products")
    results.ceilings = measure_ceilings(options.device, tiny=options.tiny)
    for workload, precision in step_cases(options):
        chosen = providers(options, precision)
        # What was compiled for another case counts against the compiler's limit otherwise.
        torch.compiler.reset()
        results.rows += step_rows(
            workload,
            precision,
            chosen,
            options.seconds,
            results.ceilings,
            report,
            options.isolate,
        )
    return results


def step_cases(options: StepOptions) -> Iterator[tuple[Workload, str]]:
    """The workloads to measure, each with its precision."""
    for size, precision, batch in itertools.product(
        options.image_sizes, options.precisions, options.batch_sizes
    ):
        yield Workload(size, batch, options.device, options.seed, options.width), precision


def step_rows(
    workload: Workload,
    precision: str,
    providers: Sequence[StepProvider],
    seconds: float,
    ceilings: dict[str, float],
    report: Report = print,
    isolate: bool = False,
) -> list[Row]:
    """Gate the providers on one workload, then race them for `seconds`."""
    batch, size = workload.batch_size, workload.image_size
    title = f"{size}×{size} {precision} batch {batch}"
    report(f"{title}: one step in float64")
    exact = ExactStep(workload)
    entries = []
    for provider in providers:
        report(f"{title}: the first step of {provider.name}")
        verdict: Verdict | None = None
        failure = ""
        try:
            verdict = judge_step(exact, provider.record(workload), provider.precision)
        except Exception as error:
            failure = first_line(error)
        entries.append(
            Entry(provider.name, provider.ours, verdict, failure, provider.implementation)
        )
    del exact
    if workload.device.type == "cuda":
        torch.cuda.empty_cache()
    contestants, programs = [], ExitStack()
    for index, (provider, entry) in enumerate(zip(providers, entries, strict=True)):
        if entry.may_race:
            try:
                program = (
                    provider.program(workload)
                    if not isolate
                    else programs.enter_context(Worker(_program, provider, workload))
                )
                contestants.append(Contestant(provider.name, program))
            except Exception as error:
                entries[index] = dataclasses.replace(entry, failure=first_line(error))
    report(f"{title}: {len(contestants)} providers in turns for {seconds:.0f} s")
    with programs:
        timings = race(contestants, workload.device, seconds=seconds)
    dtype = "bfloat16" if precision == "bf16" else "float32"
    template = Row(
        case=f"DCGAN step {size}×{size}",
        provider="",
        direction="step",
        shape=f"batch {batch}",
        dtype=dtype,
    )
    work = step_passes(size, batch, precision, workload.width)
    rows = rows_of(template, entries, timings, work, ceilings)
    for row in rows:
        if row.median is not None:
            row.extra["images_per_second"] = batch / row.median
    return rows


def _program(provider: StepProvider, workload: Workload) -> Callable[[], object]:
    """In a process of its own: one call, one step that returns nothing."""
    step = provider.program(workload)

    def once() -> None:
        step()

    return once
