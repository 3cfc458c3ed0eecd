"""The native CPU kernels as implementations of the operators: what they serve, and where they win.

An operator's table takes its "cpu" record from here: `supports` and `prefers` of the calls of that
operator, and the launchers of `fastgan.native_kernels` under the operator's names. A preference is
asked for in two steps: first the table of what was measured, then whether the kernels can be had,
which may build them; so a call that they would not win builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastgan import native, native_kernels
from fastgan.errors import BackendError
from fastgan.ops.implementations import Implementation
from fastgan.ops.native_launchers import (
    batch_norm_launchers,
    bias_act_launchers,
    loss_launchers,
)

Launchers = dict[str, Callable[..., torch.Tensor]]
Pair = tuple[int, int]
NCHW = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"


@dataclass(frozen=True)
class Win:
    """Convolutions that beat torch's by measurement; the others are left to torch.

    Attributes:
        levels: instruction-set levels in use.
        dtype: of the call.
        direction: "fprop", "dgrad" or "wgrad".
        fewer, more: bounds (least, most) on the channels of the side with fewer and with more.
        only_fused: only with an activation in the epilogue, which saves torch's pass for it.
        algorithm: of `native_kernels.ALGORITHMS`; the row holds for what it serves.
    """

    levels: tuple[str, ...]
    dtype: torch.dtype
    direction: str
    fewer: tuple[int, int]
    more: tuple[int, int]
    only_fused: bool = False
    algorithm: str = "direct"

    def holds(
        self,
        dtype: torch.dtype,
        big_channels: int,
        small_channels: int,
        kernel_size: Pair,
        stride: Pair,
    ) -> bool:
        """Return whether the row speaks of such a convolution, at its levels and direction."""
        fewer, more = sorted((big_channels, small_channels))
        return (
            dtype == self.dtype
            and self.fewer[0] <= fewer <= self.fewer[1]
            and self.more[0] <= more <= self.more[1]
            and (
                self.algorithm == "direct"
                or native_kernels.unsupported_by_winograd(
                    dtype=dtype, kernel_size=kernel_size, stride=stride
                )
                is None
            )
        )


_MANY = 1 << 30
_AVX512 = ("avx512_bf16", "avx512")
#: Against torch 2.13 (oneDNN 3.12) on one thread of a Zen 5 core, batch 64, DCGAN's layers;
#: Winograd on two. The first row that holds serves. Where the tiles are few beside the weights
#: (256 <-> 512 channels, 4x4 pixels), fprop and dgrad are faster product by product. AMX is not
#: among the measured: its rows stand on the prototype whose design it follows, with a margin.
WINS = (
    Win(("avx512_bf16",), torch.bfloat16, "fprop", (64, _MANY), (128, _MANY)),
    Win(("avx512_bf16",), torch.bfloat16, "dgrad", (64, _MANY), (128, _MANY)),
    Win(("avx512_bf16",), torch.bfloat16, "wgrad", (64, _MANY), (64, _MANY)),
    Win(("avx512_bf16",), torch.bfloat16, "dgrad", (1, 4), (64, _MANY)),
    Win(("avx512_bf16",), torch.bfloat16, "fprop", (1, 4), (64, _MANY), only_fused=True),
    Win(_AVX512, torch.float32, "fprop", (64, 255), (128, _MANY), algorithm="winograd"),
    Win(_AVX512, torch.float32, "dgrad", (64, 255), (128, _MANY), algorithm="winograd"),
    Win(_AVX512, torch.float32, "wgrad", (64, _MANY), (64, _MANY), algorithm="winograd"),
    Win(_AVX512, torch.float32, "fprop", (256, _MANY), (256, _MANY)),
    Win(_AVX512, torch.float32, "dgrad", (64, _MANY), (128, _MANY)),
    Win(_AVX512, torch.float32, "wgrad", (64, _MANY), (64, _MANY)),
    Win(_AVX512, torch.float32, "dgrad", (1, 4), (64, _MANY)),
    Win(("amx_bf16",), torch.bfloat16, "fprop", (128, _MANY), (256, _MANY)),
    Win(("amx_bf16",), torch.bfloat16, "dgrad", (128, _MANY), (256, _MANY)),
    Win(("amx_bf16",), torch.bfloat16, "wgrad", (128, _MANY), (128, _MANY)),
)


@torch.compiler.assume_constant_result
def _level() -> str | None:
    """Return the level that calls run at, or None where the kernels cannot be had."""
    extension = native.extension()
    return None if extension is None else extension.module.level()


@torch.compiler.assume_constant_result
def _missing() -> str | None:
    """Return why the kernels cannot be had, or None; may build them."""
    return native_kernels.usable()


@torch.compiler.assume_constant_result
def _ruled_out() -> str | None:
    """Return why they can never be had in this process, as far as is known without trying."""
    return native.ruled_out()


def supports(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot serve data of this kind, or None; builds nothing."""
    reason = native_kernels.unsupported(device=device, dtype=dtype)
    return reason if reason is not None else _ruled_out()


@dataclass(frozen=True)
class BatchNormWin:
    """Batch norms that beat torch's by measurement, in training forward and backward together.

    Attributes:
        training: with the batch's own statistics.
        dtypes: of the call.
        activated: with an activation, for which torch passes over memory twice more.
        most_channels: of the call; torch's slows down where they are few.
        elements: the least that were measured to win.
    """

    training: bool
    dtypes: tuple[torch.dtype, ...]
    activated: bool
    most_channels: int
    elements: int


_HALF, _FLOAT = (torch.bfloat16, torch.float16), (torch.float32,)
#: The first row that holds decides; where none does, and on fewer elements (torch's autograd needs
#: no Python), batch norm is torch's. Measured on one and two threads of a Zen 5, channels 16 to
#: 1024, 2^14 to 2^21 elements.
BATCH_NORM_WINS = (
    BatchNormWin(True, _HALF, True, _MANY, 1 << 18),
    BatchNormWin(True, _FLOAT, True, 512, 1 << 18),
    BatchNormWin(True, _FLOAT, True, _MANY, 1 << 19),
    BatchNormWin(True, _HALF + _FLOAT, False, 72, 1 << 18),
    BatchNormWin(True, _HALF, False, _MANY, 1 << 19),
    BatchNormWin(False, _HALF, True, _MANY, 1 << 19),
    BatchNormWin(False, _FLOAT, True, _MANY, 1 << 20),
    BatchNormWin(False, _HALF + _FLOAT, False, _MANY, 1 << 21),
)
#: On fewer elements torch's bias and activation win, for the same reason.
FEWEST_BIAS_ACT_ELEMENTS = 1 << 16


def _fewest(call: Any) -> int | None:
    """Return from how many elements on the batch norm is won; None: it never is."""
    for win in BATCH_NORM_WINS:
        if (
            call.training == win.training
            and call.dtype in win.dtypes
            and win.activated == (call.activation != "identity")
            and call.channels <= win.most_channels
        ):
            return win.elements
    return None


def prefers_elementwise(
    channels_last: bool, elements: int = 0, fewest: int | None = 0
) -> str | None:
    """Return why torch's operators serve batch norm, bias or losses instead, or None."""
    if not channels_last:
        return NCHW
    if fewest is None:
        return "torch was measured as fast on this dtype and these channels without an activation"
    if elements < fewest:
        return f"torch was measured faster on fewer than {fewest:,} elements"
    reason = _missing()
    if reason is None and _level() == "portable":
        reason = "the processor has no vector instructions that the kernels use"
    return reason


def prefers_convolution(call: Any) -> str | None:
    """Return why torch's convolution serves the call instead, or None."""
    if not call.channels_last:
        return NCHW
    wins = [
        win
        for win in WINS
        if win.holds(
            call.dtype, call.big_channels, call.small_channels, call.kernel_size, call.stride
        )
    ]
    reason = None if wins else "torch's convolution is faster or not measured for these channels"
    if reason is None:
        reason = _missing()
    if reason is None and not any(_level() in win.levels for win in wins):
        reason = f"torch's convolution is faster or not measured at the level {_level()}"
    return reason


def supports_convolution(call: Any) -> str | None:
    """Return why the convolution kernels cannot serve the call, or None."""
    if call.groups != 1 or call.dilation != (1, 1):
        return "native convolutions have groups=1 and dilation=1"
    return supports(call.device, call.dtype)


def _require() -> None:
    reason = _missing()
    if reason is not None:
        raise BackendError(f"backend 'cpu' cannot serve this call: {reason}")


def convolution_launchers(reference: Launchers) -> Launchers:
    """Return fprop, dgrad and wgrad: native where that was measured to win, else the reference's.

    A call's forward and backward are computed by one implementation; which of its directions torch
    computes faster is decided here, one by one.
    """

    def algorithm_of(
        direction: str,
        dtype: torch.dtype,
        big: int,
        small: int,
        kernel_size: Any,
        stride: Pair,
        activation: str = "identity",
    ) -> str | None:
        """Return the algorithm that wins, or None where torch's convolution does."""
        _require()
        level, fused = _level(), activation != "identity"
        kernel: Pair = (kernel_size[0], kernel_size[1])
        for win in WINS:
            served = win.direction == direction and level in win.levels
            served = served and (fused or not win.only_fused)
            if served and win.holds(dtype, big, small, kernel, (stride[0], stride[1])):
                return win.algorithm
        return None

    def fprop(big, weight, bias, stride, padding, activation, negative_slope):
        algorithm = algorithm_of(
            "fprop", big.dtype, big.shape[1], weight.shape[0], weight.shape[2:], stride, activation
        )
        if algorithm is None:
            return reference["fprop"](
                big, weight, bias, stride, padding, activation, negative_slope
            )
        return native_kernels.fprop(
            big, weight, bias, stride=stride, padding=padding,
            activation=activation, negative_slope=negative_slope, algorithm=algorithm,
        )  # fmt: skip

    def dgrad(small, weight, bias, big_size, stride, padding, activation, negative_slope):
        algorithm = algorithm_of(
            "dgrad", small.dtype, weight.shape[1], small.shape[1], weight.shape[2:], stride,
            activation,
        )  # fmt: skip
        if algorithm is None:
            return reference["dgrad"](
                small, weight, bias, big_size, stride, padding, activation, negative_slope
            )
        return native_kernels.dgrad(
            small, weight, bias, big_size=big_size, stride=stride, padding=padding,
            activation=activation, negative_slope=negative_slope, algorithm=algorithm,
        )  # fmt: skip

    def wgrad(big, small, kernel_size, stride, padding, out_dtype):
        algorithm = algorithm_of(
            "wgrad", big.dtype, big.shape[1], small.shape[1], kernel_size, stride
        )
        if algorithm is None:
            return reference["wgrad"](big, small, kernel_size, stride, padding, out_dtype)
        return native_kernels.wgrad(
            big, small, kernel_size=kernel_size, stride=stride, padding=padding,
            out_dtype=out_dtype, algorithm=algorithm,
        )  # fmt: skip

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}


BATCH_NORM_ACT = Implementation(
    "cpu",
    lambda call: supports(call.device, call.dtype),
    lambda call: prefers_elementwise(call.channels_last, call.elements, _fewest(call)),
    batch_norm_launchers(native_kernels, _require),
)


def _prefers_bias_act(call: Any) -> str | None:
    if call.bias_dtype is None and call.activation == "identity":
        return "there is nothing to compute"
    return prefers_elementwise(call.channels_last, call.elements, FEWEST_BIAS_ACT_ELEMENTS)


BIAS_ACT = Implementation(
    "cpu",
    lambda call: supports(call.device, call.dtype),
    _prefers_bias_act,
    bias_act_launchers(native_kernels, _require),
)


def _supports_loss(call: Any) -> str | None:
    if len(set(call.dtypes)) > 1:
        return "the native losses take real and fake logits of one dtype"
    return supports(call.device, call.dtypes[0])


ADVERSARIAL_LOSS = Implementation(
    "cpu",
    _supports_loss,
    lambda call: prefers_elementwise(True),
    loss_launchers(native_kernels, _require),
)
