"""How everything in this suite is timed: contestants interleaved in one process.

A machine drifts: its clock, its caches, its neighbours. Two programs that are timed one after
the other differ by that drift; two that take turns do not. So contestants run in rounds, each
round in a rotated order, and a ratio is the median over rounds of the ratio within a round.
Device time is read from device events, host time from `perf_counter`; working sets rotate beyond
the last-level cache, so that a repeated call finds its inputs where a training step would.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

# One timed sample lasts at least this long, in seconds: many calls of a fast contestant, one of
# a slow one. Short enough for many samples, long against the resolution of either clock.
SAMPLE_SECONDS = {"cpu": 2e-3, "cuda": 4e-3}
FEWEST_ROUNDS, MOST_ROUNDS = 5, 200
WARM_UP_CALLS, WARM_UP_SECONDS = 3, 2.0
MOST_INPUT_SETS = 16


@dataclass(frozen=True)
class Contestant:
    """One way to do the work that is being timed.

    Attributes:
        name: the provider's name in tables.
        call: does the work `calls` times; on a GPU it may return before the device is done.
        calls: how often one `call` does the work (a captured graph replays several).
        surround: a context manager entered around every timed sample, outside the clock.
    """

    name: str
    call: Callable[[], object]
    calls: int = 1
    surround: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass
class Timing:
    """What a contestant took: seconds a call, one entry a round; or why it could not run."""

    name: str
    samples: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """Seconds a call."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, in seconds."""
        return interquartile_range(self.samples)


def interquartile_range(samples: Sequence[float]) -> float:
    """Distance between the first and third quartile; 0 for fewer than two samples."""
    if len(samples) < 2:
        return 0.0
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


def paired_ratio(baseline: Timing, timing: Timing) -> tuple[float, float]:
    """How many times faster `timing` is than `baseline`: median over rounds, and its spread.

    Both must come from one `race`, whose rounds pair their samples.
    """
    ratios = [a / b for a, b in zip(baseline.samples, timing.samples, strict=True)]
    return statistics.median(ratios), interquartile_range(ratios)


def first_line(error: BaseException) -> str:
    """An exception as one readable line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def race(
    contestants: Sequence[Contestant],
    device: torch.device,
    *,
    seconds: float,
    rounds: tuple[int, int] = (FEWEST_ROUNDS, MOST_ROUNDS),
) -> dict[str, Timing]:
    """Time contestants in turns.

    Args:
        contestants: what to time, with distinct names.
        device: where they run; decides the clock.
        seconds: about how long to time all of them together, warm-up apart.
        rounds: the fewest and the most rounds, whatever `seconds` says.

    Returns:
        One `Timing` a contestant, by name. A contestant that raises leaves the race with its
        message in `failure`, and the others go on.
    """
    timings = {contestant.name: Timing(contestant.name) for contestant in contestants}
    if len(timings) != len(contestants):
        raise ValueError("contestants must have distinct names")
    repeats: dict[str, int] = {}
    for contestant in contestants:
        try:
            repeats[contestant.name] = _warm_up(contestant, device)
        except Exception as error:
            timings[contestant.name].failure = first_line(error)
    running = [contestant for contestant in contestants if contestant.name in repeats]
    deadline = time.perf_counter() + seconds
    for done in range(rounds[1]):
        if not running or (done >= rounds[0] and time.perf_counter() > deadline):
            break
        turn = done % len(running)
        for contestant in running[turn:] + running[:turn]:
            try:
                sample = _sample(contestant, device, repeats[contestant.name])
            except Exception as error:
                timings[contestant.name].failure = first_line(error)
            else:
                timings[contestant.name].samples.append(sample)
        running = [contestant for contestant in running if not timings[contestant.name].failure]
    return timings


def _warm_up(contestant: Contestant, device: torch.device) -> int:
    """Run untimed calls; return how many calls make one sample."""
    begin = time.perf_counter()
    for _ in range(WARM_UP_CALLS):
        with contestant.surround():
            contestant.call()
        if time.perf_counter() - begin > WARM_UP_SECONDS:
            break
    one = _sample(contestant, device, 1) * contestant.calls
    return max(1, math.ceil(SAMPLE_SECONDS[device.type] / max(one, 1e-9)))


def _sample(contestant: Contestant, device: torch.device, repeats: int) -> float:
    """Seconds that the work takes once, from `repeats` calls in a row."""
    call = contestant.call
    with contestant.surround():
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            elapsed = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            elapsed = time.perf_counter() - begin
    return elapsed / (repeats * contestant.calls)


def last_level_cache(device: torch.device) -> int:
    """Bytes of the cache that inputs must not stay in (L2 of a GPU, L3 of a processor)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    if size.exists():
        text = size.read_text().strip()
        return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]]
    return 32 << 20


def input_sets(bytes_each: int, device: torch.device) -> int:
    """How many input sets of `bytes_each` to rotate among so that none is still cached."""
    wanted = math.ceil(2 * last_level_cache(device) / max(bytes_each, 1))
    return min(max(wanted, 1), MOST_INPUT_SETS)


def rotating(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One callable that runs `calls` in turn, a different one each time."""
    cycle = itertools.cycle(calls)
    return lambda: next(cycle)()


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Capture `calls` in one CUDA graph and return its replay: launches cost nothing then.

    Raises:
        RuntimeError: a call cannot be captured (it synchronises, say).
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay
