"""Work in processes of its own: a training step as its user runs it, with memory of its own.

Providers that share a process share its allocator, so that one's habits help or hurt the others.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.method import first_line

START_SECONDS = 300.0


class Worker:
    """A process that holds a program and runs it when it is told to.

    Args:
        build: makes the program, in the process; it and its arguments must be picklable.
        arguments: of `build`.

    Raises:
        RuntimeError: the program cannot be built; the message is the process's own.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, torch.get_num_threads(), build, arguments), daemon=True
        )
        with _all_processors():
            self._process.start()
        theirs.close()
        if not self._connection.poll(START_SECONDS):
            self.close()
            raise RuntimeError(f"the process was not ready after {START_SECONDS:.0f} s")
        self._answer()

    def __call__(self) -> Any:
        """Run the program once, wait for it, and return what it returned.

        Raises:
            RuntimeError: it raised, or the process is gone.
        """
        self._connection.send(True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            failure, result = self._connection.recv()
        except EOFError:
            self._process.join(5.0)
            raise RuntimeError(f"the process ended with {self._process.exitcode}") from None
        if failure:
            raise RuntimeError(failure)
        return result


@contextmanager
def _all_processors() -> Iterator[None]:
    """Within: a process that is started may use every processor that this one's threads may.

    `OMP_PROC_BIND` ties each thread, the main one too, to one processor; a child would inherit
    that of the thread which starts it, for all of its own.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    os.sched_setaffinity(0, set().union(*map(os.sched_getaffinity, tasks)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _serve(
    connection: Connection, threads: int, build: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    program: Callable[[], Any] | None = None
    while True:
        try:
            if program is None:
                program, result = build(*arguments), None
            else:
                result = program()
            answer = ("", result)
        except Exception as error:
            answer = (first_line(error), None)
        try:
            connection.send(answer)
            if program is None:
                return
            connection.recv()
        except (EOFError, OSError):
            return
