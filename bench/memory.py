"""`bench memory`: the peak memory of a training step, each provider in a process of its own.

On a CPU the peak is the resident set's, above what the process held before the program was built:
weights, optimizer state, activations and whatever buffers the kernels keep. On a GPU it is the
allocator's own peak. A fresh process each time, since a peak cannot be taken back.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.baselines import Workload
from bench.method import first_line, interquartile_range
from bench.processes import Worker
from bench.results import ERROR, Results, Row, capture_environment
from bench.step import (
    BaselineProvider,
    StepOptions,
    StepProvider,
    all_providers,
    step_cases,
)

STEPS = 3
REPEATS = 3


def providers_of(options: StepOptions, precision: str) -> list[StepProvider]:
    """fastgan and the baselines that have a memory of their own.

    A compiled step's peak is the compiler's where it compiles in the same process, so on a CPU
    torch.compile is left out.
    """
    return [
        provider
        for provider in all_providers(options, precision)
        if options.device.type == "cuda"
        or not (isinstance(provider, BaselineProvider) and provider.recipe.compile_mode)
    ]


def peak_of_step(provider: StepProvider, workload: Workload) -> int:
    """Bytes at the peak of building a program and making a few steps, in this process."""
    gc.collect()
    cuda = workload.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(workload.device)
        before = torch.cuda.memory_allocated(workload.device)
    else:
        _reset_resident_peak()
        before = _status_bytes("VmRSS")
    step = provider.program(workload)
    for _ in range(STEPS):
        step()
    if cuda:
        torch.cuda.synchronize(workload.device)
        return torch.cuda.max_memory_allocated(workload.device) - before
    return _status_bytes("VmHWM") - before


def run_memory(options: StepOptions, report: Callable[[str], None] = print) -> Results:
    """Measure every provider's peak in every case."""
    results = Results("memory", capture_environment(options.device, options.seed))
    for workload, precision in step_cases(options):
        providers = providers_of(options, precision)
        results.rows += memory_rows(workload, precision, providers, report=report)
    return results


def memory_rows(
    workload: Workload,
    precision: str,
    providers: Sequence[StepProvider],
    repeats: int = REPEATS,
    report: Callable[[str], None] = print,
) -> list[Row]:
    """Every provider's peak in one case, from `repeats` processes each.

    The ratio is that of the smallest baseline's peak to the provider's.
    """
    size = workload.image_size
    rows = []
    for provider in providers:
        title = f"{size}×{size} {precision} batch {workload.batch_size}"
        report(f"{title}: {provider.name}, {repeats} fresh processes")
        row = Row(
            case=f"DCGAN step {size}×{size}, peak",
            provider=provider.name,
            direction="step",
            shape=f"batch {workload.batch_size}",
            dtype="bfloat16" if precision == "bf16" else "float32",
            unit="B",
        )
        try:
            peaks = [_in_fresh_process(provider, workload) for _ in range(repeats)]
        except Exception as error:
            rows.append(dataclasses.replace(row, status=ERROR, message=first_line(error)))
            continue
        rows.append(
            dataclasses.replace(
                row,
                median=statistics.median(peaks),
                spread=interquartile_range(peaks),
                samples=len(peaks),
            )
        )
    return _with_ratios(rows, {provider.name for provider in providers if provider.ours})


def _with_ratios(rows: list[Row], ours: set[str]) -> list[Row]:
    """Rows of one case with the ratio of their medians to the smallest baseline's."""
    baselines = [row for row in rows if row.provider not in ours and row.median]
    if not baselines:
        return rows
    best = min(baselines, key=lambda row: row.median or 0.0)
    return [
        dataclasses.replace(row, ratio=(best.median or 0.0) / row.median, baseline=best.provider)
        if row.median
        else row
        for row in rows
    ]


def _in_fresh_process(provider: StepProvider, workload: Workload) -> int:
    with Worker(_warmed_peak, provider, workload) as measure:
        return measure()


def _warmed_peak(provider: StepProvider, workload: Workload) -> Callable[[], int]:
    """In the fresh process: libraries load lazily, so a small step whose pages do not count."""
    small = dataclasses.replace(workload, image_size=16, batch_size=2, width=8)
    provider.program(small)()
    return functools.partial(peak_of_step, provider, workload)


def _reset_resident_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
