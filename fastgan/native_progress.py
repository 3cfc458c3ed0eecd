"""What a build of native kernels tells the person who waits for it, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


def say(line: str) -> None:
    """Write one line of the package's own to stderr, if there is one to write to."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"fastgan: {line}", file=sys.stderr, flush=True)


class ProgressLine:
    """One line on stderr: rewritten in place on a terminal, written once elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        if not self.terminal:
            say("compiling the native CPU kernels, once (about a minute) ...")

    def __call__(self, count: int, total: int) -> None:
        if self.terminal:
            text = f"\rfastgan: compiling the native CPU kernels, once: {count}/{total} files "
            print(text, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.terminal:
            print(file=sys.stderr)


@contextlib.contextmanager
def progress_line() -> Iterator[ProgressLine]:
    """A line of progress, ended however the block ends."""
    line = ProgressLine()
    try:
        yield line
    finally:
        line.end()
