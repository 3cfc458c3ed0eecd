"""Which implementation serves a call: tables of records and the rule that picks from them.

Every operator has a table: a tuple of `Implementation` records in order of preference, the last of
which is the reference and can serve everything. `choose` walks it with a *call*, a record of the
call's static properties alone (device, dtype, shapes, layout, arguments, autocast and TF32
switches), so that the answer can be cached, is constant under `torch.compile` and in a captured
graph, and can be explained afterwards without running anything.

A user can insist: `with fastgan.backend("triton"): ...` or FASTGAN_BACKEND=triton in the
environment (read once, on import). An implementation insisted on that cannot serve raises
`BackendError`; only the automatic choice falls back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastgan.errors import BackendError

#: Every name that an implementation can have, fastest first.
NAMES = ("cuda", "cpu", "triton", "matmul", "reference")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: one of `NAMES`.
        supports: takes the call; returns why it cannot be served, or None.
        prefers: takes a call that is supported; returns why this implementation is nevertheless
            not chosen unasked (measured slower, wrong layout ...), or None.
        run: what computes the operator; its signature belongs to the operator.
    """

    name: str
    supports: Callable[[Any], str | None]
    prefers: Callable[[Any], str | None]
    run: Callable[..., Any]

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"name={self.name!r} is not one of {NAMES}")


@dataclass(frozen=True)
class Choice:
    """What serves a call, and why nothing before it in the table does.

    Attributes:
        chosen: the implementation's name.
        rejected: (name, reason) of every implementation passed over, in the table's order.
    """

    chosen: str
    rejected: tuple[tuple[str, str], ...] = ()


def always(call: Any) -> str | None:
    """Support or prefer every call."""
    return None


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise BackendError(f"{source}={name!r} is not known; allowed: {', '.join(NAMES)}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("FASTGAN_BACKEND", "").strip().lower()
    return _checked(name, "FASTGAN_BACKEND") if name and name != "auto" else None


_forced: ContextVar[str | None] = ContextVar("fastgan_backend", default=_from_environment())


def forced_backend() -> str | None:
    """Return the implementation that the user insists on, or None for the automatic choice."""
    return _forced.get()


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Insist on one implementation of every operator called inside the `with` block.

    Holds for the calling thread (or asyncio task) alone; a backward pass uses what its forward
    pass used. `None` or `"auto"` restores the automatic choice inside an outer block.

    Raises:
        BackendError: the name is not known; later, from an operator, where the implementation
            cannot serve the call.
    """
    token = _forced.set(None if name in (None, "auto") else _checked(str(name), "backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(
    operator: str, table: tuple[Implementation, ...], call: Any, forced: str | None
) -> Choice:
    """Pick the implementation of `operator` that serves `call`.

    Args:
        operator: the operator's name, for messages.
        table: its implementations, preferred first, the reference last.
        call: the static properties that the table's predicates read.
        forced: the implementation insisted on, or None.

    Raises:
        BackendError: the forced implementation does not exist here or cannot serve the call.
    """
    rejected: list[tuple[str, str]] = []
    for implementation in table:
        name = implementation.name
        reason = implementation.supports(call)
        if forced is not None:
            if name != forced:
                continue
            if reason is None:
                return Choice(name)
            raise BackendError(f"{operator}: backend {name!r} cannot serve this call: {reason}")
        if reason is None:
            reason = implementation.prefers(call)
        if reason is None:
            return Choice(name, tuple(rejected))
        rejected.append((name, reason))
    served = ", ".join(implementation.name for implementation in table)
    raise BackendError(f"{operator}: there is no backend {forced!r} here; it has {served}")
