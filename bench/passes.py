"""The three passes of a convolution, each by itself: fprop, dgrad, wgrad.

A layer's forward and backward are made of these three, and cuDNN and oneDNN have a kernel for
each. Here fastgan's kernels meet theirs one by one, without autograd between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.operators import FORWARD, Outputs, Subject, convolution
from bench.ops import Way, serves
from bench.shapes import ConvLayer, Cost
from fastgan.ops import convolution_autograd
from fastgan.ops.convolution import CPU_WHERE_IT_WINS, LAUNCHERS

PASSES = ("fprop", "dgrad", "wgrad")


def convolution_passes(
    layer: ConvLayer, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Iterator[tuple[Subject, list[Way]]]:
    """Each pass of `layer` (one that is not transposed) with the ways to compute it."""
    whole = convolution(layer, batch, dtype, device, seed)
    big, weight, small = whole.inputs["x"], whole.inputs["weight"], whole.upstream["y"]
    own = [name for name in LAUNCHERS if name not in ("reference", CPU_WHERE_IT_WINS)]
    names = [name for name in own if serves(whole, name)]
    inputs = {
        "fprop": {"big": big, "weight": weight},
        "dgrad": {"small": small, "weight": weight},
        "wgrad": {"big": big, "small": small},
    }
    for name in PASSES:
        library = functools.partial(_library, layer=layer, direction=name, big_shape=big.shape)
        ours = functools.partial(_ours, layer=layer, direction=name)
        reductions = {
            "fprop": whole.reductions["y"],
            "dgrad": whole.reductions["grad x"],
            "wgrad": whole.reductions["grad weight"],
        }
        cost: Cost = whole.work[FORWARD][0]
        subject = Subject(
            operator=whole.operator,
            case=f"{name} {layer.name.split(' ', 1)[1]}",
            shape=whole.shape,
            dtype=dtype,
            twin=library,
            ours=ours,
            inputs=inputs[name],
            differentiable=(),
            upstream={},
            reductions={"result": reductions[name]},
            work={FORWARD: [cost]},
            data=tuple(key for key in inputs[name] if key != "weight"),
        )
        ways = [
            Way(f"fastgan {key}", True, functools.partial(ours, implementation=key))
            for key in names
        ]
        title = "cuDNN" if device.type == "cuda" else "oneDNN"
        ways.append(Way(title, False, library, convert=Tensor.contiguous))
        ways.append(Way(f"{title} channels_last", False, library))
        yield subject, ways


def _library(
    *,
    layer: ConvLayer,
    direction: str,
    big_shape: torch.Size,
    big: Tensor | None = None,
    small: Tensor | None = None,
    weight: Tensor | None = None,
) -> Outputs:
    """torch's own call for one pass, without autograd."""
    stride, padding = (layer.stride,) * 2, (layer.padding,) * 2
    geometry: tuple[Any, ...] = (stride, padding, (1, 1), False, (0, 0), 1)
    if direction == "fprop":
        return {"result": torch.ops.aten.convolution(big, weight, None, *geometry)}
    # Of the operand that is not asked for, only the shape is read.
    if direction == "dgrad":
        assert small is not None
        big = small.new_empty(1).expand(big_shape)
        mask = (True, False, False)
    else:
        assert big is not None
        weight = big.new_empty(1).expand(layer.weight_shape)
        mask = (False, True, False)
    gradients = torch.ops.aten.convolution_backward(small, big, weight, None, *geometry, mask)
    return {"result": gradients[0 if direction == "dgrad" else 1]}


def _ours(*, layer: ConvLayer, direction: str, implementation: str, **operands: Tensor) -> Outputs:
    geometry: dict[str, Any] = {
        "stride": (layer.stride, layer.stride),
        "padding": (layer.padding, layer.padding),
        "implementation": implementation,
    }
    if direction == "dgrad":
        geometry["big_size"] = layer.in_size
    if direction == "wgrad":
        geometry["kernel_size"] = (layer.kernel, layer.kernel)
    return {"result": getattr(convolution_autograd, direction)(**operands, **geometry)}
