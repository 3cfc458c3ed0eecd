"""`bench ops`: every operator on every layer's shape, every way to compute it.

For each subject the ways are torch's twin on contiguous (NCHW) and on channels_last tensors, the
twin compiled by torch.compile, fastgan's automatic choice, and every other implementation of
fastgan that serves the call. bench/grid.py says which subjects, bench/passes.py adds single passes
of convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.gate import Verdict, judge, poison_allocator
from bench.method import Contestant, captured, first_line, input_sets, race, rotating
from bench.operators import BOTH, FORWARD, Outputs, Subject, evaluate, exact_outputs
from bench.results import Row
from bench.rows import Entry, rows_of
from fastgan.errors import BackendError
from fastgan.ops import backend, explain_call
from fastgan.ops.implementations import NAMES

COMPILE = "compile"


@dataclass(frozen=True)
class Way:
    """One way to compute a subject.

    Attributes:
        name: the provider's name.
        ours: whether it is fastgan's.
        function: from keyword inputs to named outputs.
        convert: brings a tensor into the layout that this way is given.
        surround: entered around every call from outside.
        implementations: what fastgan chose, by direction.
    """

    name: str
    ours: bool
    function: Callable[..., Outputs]
    convert: Callable[[Tensor], Tensor] = lambda tensor: tensor
    surround: Callable[[], AbstractContextManager[object]] = nullcontext
    implementations: Mapping[str, str] = field(default_factory=dict)


def ways_of(subject: Subject, compiled: bool, only: Sequence[str] = ()) -> Iterator[Way]:
    """Every way to compute `subject`; `only` keeps those whose name begins with one of it."""
    chosen = {direction: subject.chosen(direction) for direction in (FORWARD, BOTH)}
    ways = [Way("fastgan", True, subject.ours, implementations=chosen)]
    ways += [
        Way(f"fastgan {name}", True, subject.ours, surround=functools.partial(backend, name))
        for name in NAMES
        if name != "reference" and set(chosen.values()) != {name} and serves(subject, name)
    ]
    if any(tensor.dim() == 4 for tensor in subject.inputs.values()):
        ways.append(Way("eager", False, subject.twin, convert=torch.Tensor.contiguous))
        ways.append(Way("eager channels_last", False, subject.twin))
    else:
        ways.append(Way("eager", False, subject.twin))
    if compiled:
        function = torch.compile(subject.twin, dynamic=False, fullgraph=True)
        ways.append(Way(COMPILE, False, function))
    for way in ways:
        if not only or any(way.name.startswith(name) for name in only):
            yield way


def serves(subject: Subject, name: str) -> bool:
    """Whether the implementation `name` can compute the subject's forward and backward."""
    with backend(name):
        try:
            explain_call(subject.operator, *subject.inputs.values(), **subject.constants)
        except BackendError:
            return False
    return True


def measure_subject(
    subject: Subject,
    ways: Sequence[Way],
    ceilings: dict[str, float],
    *,
    seconds: float,
    directions: Sequence[str] = (FORWARD, BOTH),
    timed: bool = True,
) -> list[Row]:
    """Gate every way, then time those that are right.

    Args:
        subject: what to compute.
        ways: how.
        ceilings: the measured rates, for the floor.
        seconds: time for each direction's rounds.
        directions: forward, forward+backward.
        timed: False stops after the gate (rows without times).
    """
    device = next(iter(subject.inputs.values())).device
    exact = exact_outputs(subject)
    rows = []
    for direction in directions:
        entries, contestants = [], []
        for way in ways:
            implementation = way.implementations.get(direction, "")
            entry = Entry(way.name, way.ours, implementation=implementation)
            try:
                verdict = judge_way(subject, way, direction, exact)
                entry = Entry(way.name, way.ours, verdict, implementation=implementation)
                if verdict.passed and timed:
                    contestants.append(contestant(subject, way, direction, device))
            except Exception as error:
                entry = Entry(way.name, way.ours, failure=first_line(error))
            entries.append(entry)
        timings = race(contestants, device, seconds=seconds) if contestants else {}
        template = Row(
            case=subject.case,
            provider="",
            direction=direction if subject.differentiable else "",
            shape=subject.shape,
            dtype=str(subject.dtype).removeprefix("torch."),
        )
        rows += rows_of(template, entries, timings, subject.work[direction], ceilings)
    return rows


def judge_way(subject: Subject, way: Way, direction: str, exact: Outputs) -> Verdict:
    """Compare one call of a way with the exact outputs; outputs are NaN-poisoned before it."""
    inputs = _inputs(subject, way, direction)
    names = [name for name in exact if direction == BOTH or not name.startswith("grad ")]
    wanted = {name: exact[name] for name in names}
    device = next(iter(subject.inputs.values())).device
    poison_allocator({name: value.to(subject.dtype) for name, value in wanted.items()}, device)
    with way.surround():
        outputs = evaluate(
            way.function,
            inputs,
            subject.differentiable,
            {name: way.convert(gradient) for name, gradient in subject.upstream.items()},
            direction == BOTH,
        )
    outputs = outputs | {name: inputs[name] for name in subject.state}
    return judge(outputs, wanted, subject.tolerances(wanted))


def _inputs(subject: Subject, way: Way, direction: str) -> dict[str, Tensor]:
    """Fresh copies of the inputs in the layout of a way, requiring gradients for a backward."""
    inputs = {name: way.convert(tensor.detach().clone()) for name, tensor in subject.inputs.items()}
    if direction == BOTH:
        for name in subject.differentiable:
            inputs[name].requires_grad_()
    return inputs


def contestant(
    subject: Subject,
    way: Way,
    direction: str,
    device: torch.device,
    *,
    sets: int | None = None,
    graph: bool = True,
) -> Contestant:
    """A way as something to time.

    Args:
        subject, way, direction, device: what, how, forward or both, where.
        sets: input sets to rotate among; None for as many as outgrow the cache.
        graph: on a GPU, replay a captured graph of all sets, so that launches cost nothing.
    """
    first = _inputs(subject, way, direction)
    moving = {name: first[name] for name in subject.data}
    upstream = {name: way.convert(gradient) for name, gradient in subject.upstream.items()}
    each = sum(tensor.nbytes for tensor in [*moving.values(), *upstream.values()])
    calls = []
    for index in range(sets or input_sets(each, device)):
        inputs, arriving = first, upstream
        if index:
            copies = {
                name: tensor.detach().clone().requires_grad_(tensor.requires_grad)
                for name, tensor in moving.items()
            }
            inputs = first | copies
            arriving = {name: gradient.clone() for name, gradient in upstream.items()}
        calls.append(
            functools.partial(
                evaluate,
                way.function,
                inputs,
                subject.differentiable,
                arriving,
                direction == BOTH,
            )
        )
    if graph and device.type == "cuda":
        with way.surround():
            return Contestant(way.name, captured(calls), calls=len(calls))
    return Contestant(way.name, rotating(calls), surround=way.surround)
