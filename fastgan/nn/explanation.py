"""Say, layer by layer, what runs a model and why nothing faster does.

`explain` makes one forward pass on an example, watches the calls of the layers, and asks the
operators which implementation they would choose for such calls. Nothing of the model changes (see
`fastgan.nn.preservation`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from fastgan import ops
from fastgan.errors import BackendError
from fastgan.nn.batch_norm import batch_norm_arguments
from fastgan.nn.convolution import conv2d_arguments, conv_transpose2d_arguments
from fastgan.nn.epilogue import Epilogue, epilogue_of
from fastgan.nn.observation import Call, Observer, is_layer
from fastgan.nn.preservation import preserved
from fastgan.ops.implementations import forced_backend

# Which operator runs which layer, and what the layer hands to it.
_OPERATORS: dict[type[nn.Module], tuple[str, Callable[..., dict[str, Any]]]] = {
    nn.Conv2d: ("conv2d", conv2d_arguments),
    nn.ConvTranspose2d: ("conv_transpose2d", conv_transpose2d_arguments),
    nn.BatchNorm2d: ("batch_norm_act", batch_norm_arguments),
}


@dataclass(frozen=True)
class LayerRecord:
    """How one layer is, or would be, run.

    Attributes:
        layer: its name in the model, "" for the model itself.
        type: the name of its class.
        input: the shape of its first tensor argument; None where it got none.
        dtype: that tensor's dtype, "float32" and so on.
        layout: "channels_last", "contiguous", "both" (they are the same where a channel or a pixel
            is alone) or "strided".
        implementation: "reference", "matmul", "triton", "cuda" or "cpu" where a fastgan operator
            runs it; "torch" where the module runs as it is; "fused" where the layer before it does
            its work; "none" where the backend that is insisted on cannot serve it; "-" where the
            example does not reach it.
        reason: why nothing faster is chosen.
        fused: for a layer, the activation applied in the same pass; for an activation, the layer
            that applies it.
        calls: how often the example calls it in this way.
    """

    layer: str
    type: str
    input: tuple[int, ...] | None
    dtype: str
    layout: str
    implementation: str
    reason: str
    fused: str
    calls: int = 1


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: `print` it, show it with rich, or read its records.

    Attributes:
        layers: one record a layer and kind of call, in the order of the calls.
    """

    layers: tuple[LayerRecord, ...]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The layers as plain dicts."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    def __iter__(self) -> Iterator[LayerRecord]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerRecord:
        """Return the first record of the layer called `name`."""
        for layer in self.layers:
            if layer.layer == name:
                return layer
        raise KeyError(f"no layer is called {name!r}")

    def __str__(self) -> str:
        rows = [_COLUMNS, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(*_COLUMNS)
        for layer in self.layers:
            # As Text, for a layer's name or a reason may hold what rich reads as markup.
            table.add_row(*(Text(cell) for cell in _cells(layer)))
        return table


_COLUMNS = ("layer", "type", "input", "dtype", "layout", "runs on", "fused with", "why not faster")


def _cells(layer: LayerRecord) -> tuple[str, ...]:
    shape = "-" if layer.input is None else "x".join(map(str, layer.input))
    return (
        layer.layer or "(model)",
        layer.type,
        shape + (f" ({layer.calls} calls)" if layer.calls > 1 else ""),
        layer.dtype,
        layer.layout,
        layer.implementation,
        layer.fused or "-",
        layer.reason or "-",
    )


def explain(model: nn.Module, example: Any) -> Explanation:
    """Tell what runs each layer of `model` on input like `example`, and why nothing faster.

    Before `accelerate`, it tells what would be chosen. Call it under the autocast, the backend and
    the `no_grad`, and in the training or eval mode, that you mean. Makes one forward pass, itself
    without gradients; parameters, buffers, flags, hooks and random numbers are afterwards as they
    were.

    Args:
        model: any module.
        example: the input tensor; or a tuple of positional arguments; or a dict of keyword
            arguments.

    Returns:
        One record a layer and kind of call, in the order of the calls; then the layers that the
        example does not reach.
    """
    if any(isinstance(module, LazyModuleMixin) for module in model.modules()):
        model = copy.deepcopy(model)  # the pass would give its lazy layers their shapes
    forced, recorded = forced_backend(), torch.is_grad_enabled()
    seen: Counter[LayerRecord] = Counter()
    reached: set[nn.Module] = set()

    def note(call: Call) -> None:
        reached.add(call.module)
        with ops.backend(forced), torch.set_grad_enabled(recorded):
            seen[_record(call)] += 1

    observer = Observer(model, note)
    # DDP's own forward talks to the other processes, which may not be explaining anything.
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    args, kwargs = _arguments(example)
    # What a forced backend cannot serve is a line of the table, not the end of the pass.
    with (
        preserved(model),
        torch.no_grad(),
        ops.backend(None),
        torch.compiler.set_stance("force_eager"),
    ):
        handles = observer.watch()
        try:
            inner(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    missed = [
        LayerRecord(name, type(module).__name__, None, "-", "-", "-", "not reached", "", 0)
        for module, name in observer.names.items()
        if is_layer(module) and module not in reached
    ]
    counted = [dataclasses.replace(record, calls=calls) for record, calls in seen.items()]
    return Explanation((*counted, *missed))


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    return (example,), {}


def _record(call: Call) -> LayerRecord:
    input = call.input
    fused = ""
    if call.leader and call.why_not_led is None:
        implementation, reason, fused = "fused", "", call.leader
    elif call.left_alone is None:
        implementation, reason = _served_by(call)
        if call.follower is not None:
            if call.why_not_fused is None:
                fused = type(call.follower).__name__
            else:
                reason = "; ".join(filter(None, [reason, f"not fused: {call.why_not_fused}"]))
    else:
        implementation, reason = "torch", call.left_alone
        if epilogue_of(call.module) is not None:
            reason = call.why_not_led or "not right after a fastgan layer in a Sequential"
    return LayerRecord(
        call.name,
        type(call.module).__name__,
        None if input is None else tuple(input.shape),
        "-" if input is None else str(input.dtype).removeprefix("torch."),
        "-" if input is None else _layout(input),
        implementation,
        reason,
        fused,
    )


def _served_by(call: Call) -> tuple[str, str]:
    """Return the implementation that serves a call, and why none before it does."""
    layer = call.module
    operator, arguments = next(
        entry for original, entry in _OPERATORS.items() if isinstance(layer, original)
    )
    epilogue = Epilogue(
        getattr(layer, "activation", "identity"), getattr(layer, "negative_slope", 0.01)
    )
    if call.follower is not None and call.why_not_fused is None:
        epilogue = epilogue_of(call.follower) or epilogue
    options = {**arguments(layer, *call.args, **call.kwargs), **epilogue._asdict()}
    if operator == "batch_norm_act" and layer.training:
        options["stat_groups"] = getattr(layer, "stat_groups", 1)
    try:
        choice = ops.explain_call(operator, **options)
    except BackendError as error:
        return "none", str(error)
    return choice.chosen, "; ".join(f"{name}: {reason}" for name, reason in choice.rejected)


def _layout(input: Tensor) -> str:
    contiguous = input.is_contiguous()
    if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
        return "both" if contiguous else "channels_last"
    return "contiguous" if contiguous else "strided"
