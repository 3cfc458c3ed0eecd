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

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastgan.errors import BackendError

#: Every name that an implementation can have.
NAMES = ("matmul", "cuda", "cpu", "triton", "reference")

#: dtypes that kernels compute in; the reference takes float64 too.
KERNEL_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: one of `NAMES`.
        supports: takes the call; returns why it cannot be served, or None.
        prefers: takes a call that is supported; returns why this implementation is nevertheless
            not chosen unasked (measured slower, wrong layout ...), or None.
        run: what computes the operator: a function, or functions by name where an operator has
            several (the launchers of a kernel family). Names and signatures are the operator's.
    """

    name: str
    supports: Callable[[Any], str | None]
    prefers: Callable[[Any], str | None]
    run: Any

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
        raise BackendError(f"{source}={name!r} is not known; allowed: auto, {', '.join(NAMES)}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("FASTGAN_BACKEND", "").strip().lower()
    return _checked(name, "FASTGAN_BACKEND") if name and name != "auto" else None


_environment = _from_environment()


class _State(threading.local):
    # The value of threads that never set one; a default of getattr would cost an exception a call.
    forced: str | None = _environment


# One value a thread. torch.compile guards on it, and so recompiles when the value changes (a
# ContextVar it cannot trace at all).
_state = _State()


def forced_backend() -> str | None:
    """Return the implementation that the user insists on, or None for the automatic choice."""
    return _state.forced


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Insist on one implementation of every operator called inside the `with` block.

    Holds for the calling thread alone; a backward pass uses what its forward pass used. `None` or
    `"auto"` restores the automatic choice inside an outer block.

    Raises:
        BackendError: the name is not known; later, from an operator, where the implementation
            cannot serve the call.
    """
    outer = forced_backend()
    _state.forced = None if name in (None, "auto") else _checked(str(name), "backend")
    try:
        yield
    finally:
        _state.forced = outer


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
        if forced is not None and name != forced:
            continue
        reason = implementation.supports(call)
        if forced is not None and reason is not None:
            raise BackendError(f"{operator}: backend {name!r} cannot serve this call: {reason}")
        if forced is None and reason is None:
            reason = implementation.prefers(call)
        if reason is None:
            return Choice(name, tuple(rejected))
        rejected.append((name, reason))
    served = ", ".join(implementation.name for implementation in table)
    raise BackendError(f"{operator}: there is no backend {forced!r} for it; there are: {served}")


# torch.autograd.Function asks this of every call itself, and torch.compile guards on it.
_functorch_active = torch._C._are_functorch_transforms_active
_batched_by_the_older_vmap = torch._C._functorch.is_legacy_batchedtensor
_TRANSFORMED = "torch.func's transforms and forward-mode AD see through torch's own operators alone"


def transformed() -> bool:
    """Return whether a transform of `torch.func` or a level of forward-mode AD is active.

    What is called then must be made of torch's own operators: they alone have rules for vmap and
    jvp, and under vmap a tensor cannot even be asked for its memory format. Forty nanoseconds.
    """
    return _functorch_active() or forward_ad._current_level >= 0


def recorded(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a call with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def transformed_backward(*tensors: Tensor) -> bool:
    """Return whether a backward pass that works with `tensors` is under a transform.

    `torch.autograd.grad(is_grads_batched=True)`, and with it `functional.jacobian(vectorize=True)`,
    batches gradients by an older vmap, which only the tensors know of.
    """
    if transformed():
        return True
    # torch.compile cannot ask the tensors, and traces none of these.
    return not torch.compiler.is_compiling() and any(map(_batched_by_the_older_vmap, tensors))


def choice_when_transformed(operator: str, table: tuple[Implementation, ...]) -> Choice:
    """Return the reference: what serves any call of `operator` while `transformed()`.

    Raises:
        BackendError: another implementation is insisted on.
    """
    forced = forced_backend()
    if forced not in (None, "reference"):
        raise BackendError(
            f"{operator}: backend {forced!r} cannot serve this call: {_TRANSFORMED}; use "
            "backend('reference'), or 'auto', which chooses it here"
        )
    return Choice("reference", tuple((row.name, _TRANSFORMED) for row in table[:-1]))


_choices: dict[tuple[str, Any, str | None], Choice] = {}
_MOST_CHOICES = 4096


def cached_choice(
    operator: str,
    table: tuple[Implementation, ...],
    properties: Any,
    call_type: Callable[[Any], Any] | None = None,
) -> Choice:
    """Return `choose`'s answer under the backend in force, remembered for equal calls.

    The memory is passed by while torch.compile traces: the choice becomes a constant of the graph.

    Args:
        operator, table: as in `choose`.
        properties: the call's static properties.
        call_type: makes the call of them, once for each distinct call (a named tuple takes longer
            to make than to look up); None: they are the call.
    """
    forced = _state.forced
    if torch.compiler.is_compiling():
        return _chosen(operator, table, properties, call_type, forced)
    key = (operator, properties, forced)
    choice = _choices.get(key)
    if choice is None:
        if len(_choices) >= _MOST_CHOICES:
            _choices.clear()
        choice = _choices[key] = _chosen(operator, table, properties, call_type, forced)
    return choice


def _chosen(operator, table, properties, call_type, forced):  # type: ignore[no-untyped-def]
    call = properties if call_type is None else call_type(properties)
    return choose(operator, table, call, forced)


def implementation_named(table: tuple[Implementation, ...], name: str) -> Implementation:
    """Return the record called `name`; an operator's dispatch inside `torch.ops.fastgan`."""
    for implementation in table:
        if implementation.name == name:
            return implementation
    raise BackendError(f"there is no implementation {name!r}")


TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
#: Triton's interpreter runs kernels on CPU tensors; the switch counts if set before the import.
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def _capability(device_index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def triton_supports(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why no Triton kernel can run on `device` in `dtype`, or None."""
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton; Linux only)"
    if dtype not in KERNEL_DTYPES:
        return f"Triton's kernels compute in float32, bfloat16 or float16, not {dtype}"
    if device.type == "cpu":
        if TRITON_INTERPRETS:
            return None
        return "Triton runs on CPU tensors only through its interpreter (TRITON_INTERPRET=1)"
    if device.type != "cuda":
        return f"Triton's kernels do not run on device type {device.type!r}"
    if torch.version.hip is None and _capability(device.index or 0) < (8, 0):
        return "Triton's kernels need a GPU of compute capability 8.0 or later"
    return None


def triton_prefers(device: torch.device) -> str | None:
    """Return why Triton is not chosen unasked on `device`, or None."""
    if device.type == "cpu":
        return "Triton's interpreter is for tests: thousands of times slower than a kernel"
    return None
