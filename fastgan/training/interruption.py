"""Ctrl-C and SIGTERM as a wish to stop: the loop finishes its step, saves and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop."""

    asked: bool = False


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Within: the first SIGINT or SIGTERM sets `asked`; a second one acts as it did before.

    Only the main thread may listen to signals; elsewhere nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        request.asked = True
        restore()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
