"""From verdicts and timings to rows: who may have a ratio, and against whom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.ceilings import floor_seconds
from bench.gate import Verdict
from bench.method import Timing, paired_ratio
from bench.results import ERROR, FAILED, OK, Row
from bench.shapes import Cost


@dataclass(frozen=True)
class Entry:
    """A provider that took part in a case: its verdict, or the message of what it raised."""

    provider: str
    ours: bool
    verdict: Verdict | None = None
    failure: str = ""
    implementation: str = ""

    @property
    def may_race(self) -> bool:
        """Only a provider whose result is right is timed."""
        return not self.failure and (self.verdict is None or self.verdict.passed)


def rows_of(
    template: Row,
    entries: Sequence[Entry],
    timings: Mapping[str, Timing],
    work: Sequence[Cost] = (),
    ceilings: dict[str, float] | None = None,
) -> list[Row]:
    """One row an entry.

    Args:
        template: the case's row, whose provider is replaced.
        entries: everything that was tried.
        timings: of one race among those that passed the gate.
        work: the passes of the case's least work.
        ceilings: the measured rates, for the floor.
    """
    timed = {
        entry.provider: timings[entry.provider]
        for entry in entries
        if entry.may_race and entry.provider in timings and not timings[entry.provider].failure
    }
    baselines = [entry.provider for entry in entries if not entry.ours and entry.provider in timed]
    best = min(baselines, key=lambda name: timed[name].median, default="")
    floor = floor_seconds(work, template.dtype, ceilings) if ceilings else None
    rows = []
    for entry in entries:
        row = dataclasses.replace(
            template,
            provider=entry.provider,
            implementation=entry.implementation,
            flops=sum(one.flops for one in work) if work else None,
            bytes=sum(one.bytes for one in work) if work else None,
            floor=floor,
            extra=dict(template.extra),
        )
        if entry.verdict is not None:
            finite = math.isfinite(entry.verdict.error)
            row = dataclasses.replace(
                row,
                error=entry.verdict.error if finite else None,
                tolerance=entry.verdict.tolerance,
            )
        failure = entry.failure
        if not failure and entry.provider in timings:
            failure = timings[entry.provider].failure
        if failure:
            row = dataclasses.replace(row, status=ERROR, message=failure)
        elif entry.verdict is not None and not entry.verdict.passed:
            row = dataclasses.replace(row, status=FAILED, message=entry.verdict.message)
        elif entry.provider in timed:
            row = _timed_row(row, timed[entry.provider], timed.get(best), best)
        rows.append(row)
    return rows


def _timed_row(row: Row, timing: Timing, baseline: Timing | None, best: str) -> Row:
    ratio = spread = None
    if baseline is not None:
        ratio, spread = paired_ratio(baseline, timing)
    return dataclasses.replace(
        row,
        status=OK,
        median=timing.median,
        spread=timing.spread,
        samples=len(timing.samples),
        ratio=ratio,
        ratio_spread=spread,
        baseline=best,
        floor_share=row.floor / timing.median if row.floor else None,
    )
