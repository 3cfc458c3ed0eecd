"""`bench overhead`: what a call of each operator costs in Python, on tensors too small to matter.

DCGAN's layers are small, so a step pays for every call's checks, dispatch and autograd nodes.
Forward and backward of each operator, against the torch functions that it replaces; both
compute next to nothing here, so what differs is the way there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.method import first_line, race
from bench.operators import (
    BOTH,
    Subject,
    adversarial_loss,
    batch_norm_act,
    bias_act,
    binary_cross_entropy,
    convolution,
    exact_outputs,
)
from bench.ops import Way, contestant, judge_way
from bench.results import Results, Row, capture_environment
from bench.rows import Entry, rows_of
from bench.shapes import ConvLayer, MapLayer

BATCH = 2


def tiny_subjects(device: torch.device, seed: int = 0) -> list[Subject]:
    """One subject an operator, of a few hundred elements."""
    single = torch.float32
    conv = ConvLayer("4→4 @4²", False, 4, 4, (4, 4))
    transposed = ConvLayer("4→4 @2²", True, 4, 4, (2, 2))
    maps = MapLayer("4 @4²", 4, (4, 4), "relu")
    return [
        convolution(conv, BATCH, single, device, seed),
        convolution(transposed, BATCH, single, device, seed),
        batch_norm_act(maps, BATCH, single, device, seed),
        bias_act(maps, BATCH, single, device, seed),
        adversarial_loss("discriminator_loss", BATCH, single, device, seed),
        adversarial_loss("generator_loss", BATCH, single, device, seed),
        binary_cross_entropy(BATCH, single, device, seed),
    ]


def run_overhead(
    device: torch.device,
    *,
    seconds: float = 2.0,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Results:
    """Time one call (forward + backward) of each operator and of its twin, `seconds` each."""
    results = Results("overhead", capture_environment(device, seed))
    for subject in tiny_subjects(device, seed):
        report(subject.operator)
        exact = exact_outputs(subject)
        ways = [
            Way("fastgan", True, subject.ours, implementations={BOTH: subject.chosen(BOTH)}),
            Way("torch", False, subject.twin),
        ]
        entries, contestants = [], []
        for way in ways:
            try:
                verdict = judge_way(subject, way, BOTH, exact)
                if verdict.passed:
                    contestants.append(contestant(subject, way, BOTH, device, sets=1, graph=False))
                implementation = way.implementations.get(BOTH, "")
                entry = Entry(way.name, way.ours, verdict, implementation=implementation)
            except Exception as error:
                entry = Entry(way.name, way.ours, failure=first_line(error))
            entries.append(entry)
        timings = race(contestants, device, seconds=seconds)
        template = Row(
            case=f"{subject.operator}, one call",
            provider="",
            direction=BOTH,
            shape=subject.shape,
            dtype="float32",
        )
        rows = rows_of(template, entries, timings)
        for row in rows:
            if row.ratio:
                row.extra["times_torch"] = 1 / row.ratio
        results.rows += rows
    return results
