"""The method: turns, clocks, spreads, and what a failing contestant does."""

from __future__ import annotations

import itertools

import pytest
import torch

from bench.method import Contestant, Timing, input_sets, paired_ratio, race, rotating

CPU = torch.device("cpu")


def test_contestants_take_turns_in_a_rotated_order() -> None:
    order: list[str] = []
    contestants = [Contestant(name, lambda name=name: order.append(name)) for name in "abc"]
    race(contestants, CPU, seconds=0.0, rounds=(3, 3))
    turns = "".join(name for name, _ in itertools.groupby(order))
    assert turns == "abc" + "abc" + "bca" + "cab"  # the warm-up, then three rounds


def test_an_error_takes_only_its_contestant_out_of_the_race() -> None:
    calls = itertools.count()

    def fails_late() -> None:
        if next(calls) > 20:
            raise RuntimeError("no more\nsecond line")

    def fails_at_once() -> None:
        raise ValueError("not at all")

    timings = race(
        [
            Contestant("good", lambda: None),
            Contestant("late", fails_late),
            Contestant("never", fails_at_once),
        ],
        CPU,
        seconds=0.0,
    )
    assert timings["good"].samples
    assert not timings["good"].failure
    assert timings["late"].failure == "RuntimeError: no more"
    assert timings["never"].failure == "ValueError: not at all"


def test_two_contestants_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        race([Contestant("a", lambda: None)] * 2, CPU, seconds=0.0)


def test_a_ratio_is_paired_so_drift_between_rounds_cancels() -> None:
    baseline = Timing("baseline", [2.0, 4.0, 8.0, 16.0])
    ours = Timing("ours", [1.0, 2.0, 4.0, 8.0])
    assert paired_ratio(baseline, ours) == (2.0, 0.0)
    assert baseline.spread > 0


def test_surround_is_entered_around_the_call() -> None:
    from contextlib import contextmanager

    inside = []

    @contextmanager
    def surround():
        inside.append(True)
        yield
        inside.pop()

    def call() -> None:
        assert inside

    timings = race([Contestant("a", call, surround=surround)], CPU, seconds=0.0)
    assert not timings["a"].failure


def test_inputs_rotate_beyond_the_cache_and_no_further() -> None:
    assert input_sets(1 << 40, CPU) == 1
    assert input_sets(1, CPU) > 1
    seen = []
    call = rotating([lambda: seen.append(0), lambda: seen.append(1)])
    for _ in range(4):
        call()
    assert seen == [0, 1, 0, 1]
