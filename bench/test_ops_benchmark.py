"""The operators under pytest-benchmark: `pytest bench --benchmark-enable [--bench-json FILE]`.

Each operator on one layer of DCGAN-64 and each way to compute it, gated against float64 first. Use
it with pytest-benchmark's own machinery (--benchmark-compare, --benchmark-histogram, -k). Its
providers run one after the other; `python -m bench ops` has them take turns, covers all shapes
and is what published ratios come from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from bench.method import Timing, interquartile_range
from bench.operators import (
    BOTH,
    FORWARD,
    Outputs,
    Subject,
    adversarial_loss,
    batch_norm_act,
    bias_act,
    convolution,
    exact_outputs,
)
from bench.ops import contestant, judge_way, ways_of
from bench.results import Row
from bench.shapes import dcgan_activations, dcgan_convolutions, dcgan_norms

BATCH = 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_LAYERS = {layer.name: layer for layer in dcgan_convolutions(64)}
SUBJECTS = {
    "conv2d": functools.partial(convolution, _LAYERS["D 64→128 @32²"]),
    "conv_transpose2d": functools.partial(convolution, _LAYERS["G 128→64 @16²"]),
    "to-image": functools.partial(convolution, _LAYERS["G 64→3 @32²"]),
    "batch_norm_act": functools.partial(batch_norm_act, dcgan_norms(64)[3]),
    "bias_act": functools.partial(bias_act, dcgan_activations(64)[1]),
    "discriminator_loss": functools.partial(adversarial_loss, "discriminator_loss"),
}
PROVIDERS = ("fastgan", "fastgan triton", "fastgan cuda", "fastgan cpu", "eager channels_last")


@functools.cache
def _subject(name: str, dtype: torch.dtype) -> tuple[Subject, Outputs]:
    subject = SUBJECTS[name](BATCH, dtype, DEVICE)
    return subject, exact_outputs(subject)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("provider", [*PROVIDERS, "eager"])
def test_operator(
    benchmark: Any, name: str, provider: str, dtype: torch.dtype, direction: str
) -> None:
    subject, exact = _subject(name, dtype)
    way = next((way for way in ways_of(subject, False) if way.name == provider), None)
    if way is None:
        pytest.skip(f"{provider} does not serve {name} here")
    verdict = judge_way(subject, way, direction, exact)
    assert verdict.passed, verdict.message
    racer = contestant(subject, way, direction, DEVICE)

    def call() -> None:
        with racer.surround():
            racer.call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.group = f"{subject.case} {direction} {dtype}"
    row = Row(
        subject.case,
        provider,
        direction=direction,
        shape=subject.shape,
        dtype=str(dtype).removeprefix("torch."),
        implementation=way.implementations.get(direction, ""),
        error=verdict.error,
        tolerance=verdict.tolerance,
        flops=sum(one.flops for one in subject.work[direction]),
        bytes=sum(one.bytes for one in subject.work[direction]),
    )
    benchmark.extra_info.update(row=dataclasses.asdict(row), calls=racer.calls)
    benchmark.pedantic(call, rounds=10, iterations=1, warmup_rounds=3)


def rows_from_benchmarks(benchmarks: Iterable[Any]) -> list[Row]:
    """Rows of pytest-benchmark's measurements, with the ratio of medians to the best baseline."""
    groups: dict[tuple[str, ...], list[tuple[Row, Timing]]] = {}
    for measured in benchmarks:
        row = Row(**measured.extra_info["row"])
        samples = [second / measured.extra_info["calls"] for second in measured.stats.data]
        groups.setdefault(row.identity[:4], []).append((row, Timing(row.provider, samples)))
    rows = []
    for members in groups.values():
        baselines = [timing for row, timing in members if not row.provider.startswith("fastgan")]
        best = min(baselines, key=lambda timing: timing.median, default=None)
        for row, timing in members:
            rows.append(
                dataclasses.replace(
                    row,
                    median=timing.median,
                    spread=interquartile_range(timing.samples),
                    samples=len(timing.samples),
                    ratio=best.median / timing.median if best else None,
                    baseline=best.name if best else "",
                )
            )
    return rows
