"""Programs in processes of their own: what they return, how they fail, where they may run."""

from __future__ import annotations

import functools
import os
import threading

import pytest

from bench.processes import Worker


def test_a_program_runs_elsewhere_each_time_it_is_told() -> None:
    with Worker(functools.partial, os.getpid) as program:
        pid = program()
        assert pid == program() != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_failures_are_the_processes_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"ValueError: invalid literal .*'no number'"):
        Worker(int, "no number")
    with Worker(functools.partial, int, "no number") as program:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
                program()
    with (
        Worker(functools.partial, os._exit, 3) as program,
        pytest.raises(RuntimeError, match="the process ended with 3"),
    ):
        program()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors and a system that ties threads to them",
)
def test_a_process_may_use_all_processors_though_the_main_thread_may_not() -> None:
    allowed, done = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with Worker(functools.partial, os.sched_getaffinity, 0) as program:
            assert program() == allowed
        assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
        done.set()
        other.join()
