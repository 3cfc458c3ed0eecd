"""How a convolution will be computed: what is asked, who can serve it, with which numbers.

`plan` turns the static properties of a call of `conv2d` or `conv_transpose2d` into a `Plan`, once
for each distinct call: the answer is cached and costs a dictionary look-up afterwards. Arguments
that torch would refuse are planned onto the reference whatever backend is forced, so that the error
comes from torch, in torch's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.convolution_sizes import Pair, small_size, smallest_big_size
from fastgan.ops import native_cpu, native_cuda
from fastgan.ops.convolution import (
    CPU_WHERE_IT_WINS,
    LAUNCHERS,
    tf32_allowed,
)
from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    choice_when_transformed,
    choose,
    forced_backend,
    recorded,
    transformed,
    triton_prefers,
    triton_supports,
)

PairArgument = int | Sequence[int]


class Call(NamedTuple):
    """The static properties of a valid call, as the table of implementations sees them.

    `big_size` is (H, W) on the big side: conv2d's input, conv_transpose2d's output. `dtype` is the
    one that it is computed in, after autocast.
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    big_size: Pair
    small_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    tf32: bool
    big_channels: int = 0
    small_channels: int = 0
    batch: int = 1


class Plan(NamedTuple):
    """What a call does: by which implementation, with its arguments written out.

    Attributes:
        choice: the table's answer.
        implementation: where an activation follows.
        recorded, unrecorded: where none does, and autograd records the call or nothing does:
            torch's convolution where the pass is not won.
        dtype: that it is computed in.
        big_size, stride, padding: (vertical, horizontal).
        channels_last: whether the input, and so the result, is sure to have torch's strides for it.
    """

    choice: Choice
    implementation: str
    recorded: str
    unrecorded: str
    dtype: torch.dtype
    big_size: Pair = (0, 0)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    channels_last: bool = False


# ------------------------------------------------------------------ table of implementations


def _matmul_supports(call: Call) -> str | None:
    if call.groups != 1 or call.dilation != (1, 1):
        return "groups and dilation must be 1"
    if call.small_size != (1, 1) or call.padding != (0, 0) or call.kernel_size != call.big_size:
        return "it is a matrix product only where the kernel covers all of an unpadded big side"
    return None


def _triton_supports(call: Call) -> str | None:
    reason = triton_supports(call.device, call.dtype)
    if reason is None and call.groups != 1:
        reason = f"Triton's kernels have groups=1, not {call.groups}"
    if reason is None and call.dilation != (1, 1):
        reason = f"Triton's kernels have dilation=1, not {call.dilation}"
    return reason


def _triton_prefers(call: Call) -> str | None:
    reason = triton_prefers(call.device)
    if reason is None and call.dtype == torch.float32 and not call.tf32:
        reason = (
            "float32 without TF32 leaves the tensor cores idle: allow it with "
            "torch.backends.cudnn.allow_tf32 = True, or use bfloat16"
        )
    if reason is None and not call.channels_last:
        reason = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"
    return reason


#: Measured on a CPU, forward and backward, 2 to 30 times faster than the convolution: hence first.
IMPLEMENTATIONS = (
    Implementation("matmul", _matmul_supports, always, {}),
    native_cuda.CONVOLUTION,
    Implementation(
        "cpu",
        native_cpu.supports_convolution,
        native_cpu.prefers_convolution,
        LAUNCHERS["cpu"],
    ),
    Implementation("triton", _triton_supports, _triton_prefers, LAUNCHERS["triton"]),
    Implementation("reference", always, always, LAUNCHERS["reference"]),
)


# ---------------------------------------------------------------------------- validity


def _pair(value: Any) -> Pair | None:
    if isinstance(value, (int, torch.SymInt)):
        return (value, value)  # type: ignore[return-value]
    if isinstance(value, tuple) and all(isinstance(v, (int, torch.SymInt)) for v in value):
        if len(value) == 2:
            return value
        if len(value) == 1:
            return (value[0], value[0])
    return None


def _same_padding(padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Any:
    """Return what "valid" and "same" stand for, or None where that is not one number a side."""
    if padding == "valid":
        return 0
    total = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if padding != "same" or stride != (1, 1) or any(t % 2 for t in total):
        return None
    return tuple(t // 2 for t in total)


class _Key(NamedTuple):
    """Everything that a plan depends on."""

    transposed: bool
    device: torch.device
    weight_device: torch.device
    dtype: torch.dtype
    weight_dtype: torch.dtype
    bias: tuple[torch.device, torch.dtype, tuple[int, ...]] | None
    shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    channels_last: bool
    stride: Any
    padding: Any
    output_padding: Any
    dilation: Any
    groups: int
    autocast: torch.dtype | None
    tf32: bool
    forced: str | None


_CASTABLE = frozenset({torch.float32, torch.bfloat16, torch.float16})


def _compute_dtype(key: _Key) -> torch.dtype | None:
    """Return the one dtype that data, weight and bias have after autocast, or None."""
    dtypes = [key.dtype, key.weight_dtype]
    if key.bias is not None:
        dtypes.append(key.bias[1])
    if key.autocast is not None:
        dtypes = [key.autocast if dtype in _CASTABLE else dtype for dtype in dtypes]
    same = all(dtype == dtypes[0] for dtype in dtypes) and dtypes[0].is_floating_point
    return dtypes[0] if same else None


def _call(key: _Key) -> Call | None:
    """Return what is asked in the table's terms, or None where torch would refuse it."""
    dtype = _compute_dtype(key)
    stride, dilation = _pair(key.stride), _pair(key.dilation)
    extra = _pair(key.output_padding)
    dimensions = len(key.shape) in (3, 4) and len(key.weight_shape) == 4
    if dtype is None or stride is None or dilation is None or extra is None or not dimensions:
        return None
    devices = key.device == key.weight_device and (key.bias is None or key.bias[0] == key.device)
    if not devices or min(stride) < 1 or min(dilation) < 1 or min(extra) < 0 or key.groups != 1:
        # Grouped convolutions are the reference's in any case; nothing is left to check.
        return _grouped(key, dtype) if devices and key.groups > 1 else None

    size: Pair = (key.shape[-2], key.shape[-1])
    channels = key.shape[-3]
    small_channels, big_channels = key.weight_shape[:2]
    kernel: Pair = (key.weight_shape[2], key.weight_shape[3])
    padding = key.padding
    if isinstance(padding, str):
        padding = _same_padding(padding, kernel, stride, dilation)
    padding = _pair(padding)
    if padding is None or min(padding) < 0 or min(size) < 1 or min(key.weight_shape) < 1:
        return None
    span = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    if key.transposed:
        big, small = smallest_big_size(size, span, stride, padding), size
        big = (big[0] + extra[0], big[1] + extra[1])
        fits = all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True))
        taken, given = small_channels, big_channels
    else:
        big, small = size, small_size(size, span, stride, padding)
        fits = True
        taken, given = big_channels, small_channels
    if key.bias is not None and tuple(key.bias[2]) != (given,):
        return None
    if not fits or channels != taken or min(big) < 1 or min(small) < 1:
        return None
    return Call(
        key.device,
        dtype,
        key.channels_last,
        big,
        small,
        kernel,
        stride,
        padding,
        dilation,
        key.groups,
        key.tf32,
        big_channels,
        small_channels,
        key.shape[0] if len(key.shape) == 4 else 1,
    )


def _grouped(key: _Key, dtype: torch.dtype) -> Call:
    nothing = (0, 0)
    return Call(
        key.device,
        dtype,
        key.channels_last,
        *(nothing,) * 5,
        (1, 1),
        key.groups,
        key.tf32,
    )


# ---------------------------------------------------------------------------- planning

_plans: dict[tuple[Any, ...], Plan] = {}
_MOST_PLANS = 4096
_INVALID = Choice("reference", (("triton", "torch refuses these arguments"),))


@torch.compiler.assume_constant_result
def _tf32_while_tracing() -> bool:
    return tf32_allowed()


def _make_plan(key: _Key) -> Plan:
    call = _call(key)
    if call is None:
        return Plan(_INVALID, *("reference",) * 3, key.dtype)
    operator = "conv_transpose2d" if key.transposed else "conv2d"
    choice = choose(operator, IMPLEMENTATIONS, call, key.forced)
    implementation = recorded = unrecorded = choice.chosen
    if choice.chosen == "cpu" and key.forced is None:
        implementation = recorded = unrecorded = CPU_WHERE_IT_WINS
        if not native_cpu.wins_recorded(call):
            recorded = "reference"
        if not native_cpu.wins_forward(call, "dgrad" if key.transposed else "fprop"):
            unrecorded = "reference"
    return Plan(
        choice,
        implementation,
        recorded,
        unrecorded,
        call.dtype,
        call.big_size,
        call.stride,
        call.padding,
        key.channels_last and 1 not in key.shape,
    )


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    # The meta device has no autocast, and torch raises when asked about it.
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def plan(
    transposed: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Plan:
    """Return the plan of a call, with the arguments as the public functions take them."""
    if transformed():
        operator = "conv_transpose2d" if transposed else "conv2d"
        choice = choice_when_transformed(operator, IMPLEMENTATIONS)
        return Plan(choice, *("reference",) * 3, x.dtype)
    device = x.device
    device_type = "cpu" if x.is_cpu else device.type  # the name of a device takes long to make
    compiling = torch.compiler.is_compiling()
    tf32 = device_type == "cuda" and (_tf32_while_tracing() if compiling else tf32_allowed())
    # A _Key in waiting: a named tuple takes longer to make than to look up.
    key: tuple[Any, ...] = (
        transposed,
        device,
        weight.device,
        x.dtype,
        weight.dtype,
        None if bias is None else (bias.device, bias.dtype, bias.shape),
        x.shape,
        weight.shape,
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last),
        stride,
        padding,
        output_padding,
        dilation,
        groups,
        _autocast_dtype(device_type),
        tf32,
        forced_backend(),
    )
    if compiling:
        return _make_plan(_hashable(key))
    try:
        made = _plans.get(key)
    except TypeError:  # a list has no hash
        key = _hashable(key)
        made = _plans.get(key)
    if made is None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        made = _plans[key] = _make_plan(_hashable(key))
    return made


def _hashable(key: tuple[Any, ...]) -> _Key:
    return _Key._make(tuple(value) if isinstance(value, list) else value for value in key)


def implementation_of(made: Plan, activation: str, *operands: Tensor | None) -> str:
    """Return which implementation a planned call takes, given who looks on."""
    if activation != "identity":
        return made.implementation
    if made.recorded == made.unrecorded:
        return made.recorded
    return made.recorded if recorded(*operands) else made.unrecorded


def conv2d_choice(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **epilogue: Any,
) -> Choice:
    """Return what would serve `conv2d` with these arguments."""
    return plan(False, x, weight, bias, stride, padding, 0, dilation, groups).choice


def conv_transpose2d_choice(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    **epilogue: Any,
) -> Choice:
    """Return what would serve `conv_transpose2d` with these arguments."""
    return plan(True, x, weight, bias, stride, padding, output_padding, dilation, groups).choice
