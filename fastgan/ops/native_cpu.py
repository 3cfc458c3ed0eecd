"""The native CPU kernels as implementations of the operators: what they serve, and where they win.

An operator's table takes its "cpu" record from here: `supports` and `prefers` of the calls of that
operator, and the launchers of `fastgan.native_kernels` under the operator's names. A preference is
asked for in two steps: first the tables of what was measured (`native_wins`), then whether the
kernels can be had, which may build them; so a call that they would not win builds nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fastgan import native, native_convolution, native_images, native_kernels
from fastgan.convolution_sizes import Pair, small_size
from fastgan.errors import BackendError
from fastgan.ops.implementations import Implementation, forced_backend
from fastgan.ops.native_launchers import (
    batch_norm_launchers,
    bias_act_launchers,
    loss_launchers,
)
from fastgan.ops.native_wins import (
    CONVOLUTION_WINS,
    Convolution,
    fewest_batch_norm_elements,
    fewest_bias_act_elements,
    winning_algorithm,
)

Launchers = dict[str, Callable[..., torch.Tensor]]
DIRECTIONS = ("fprop", "dgrad", "wgrad")
NCHW = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"


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


def too_few(x: torch.Tensor, fewest: int) -> bool:
    """Whether `prefers_elementwise` would leave a call to torch for its few elements alone.

    Before anything else is asked for: such a call takes less time than the rest of the questions.
    """
    return x.is_cpu and x.numel() < fewest and forced_backend() is None


def _convolution(call: Any) -> Convolution:
    return Convolution(
        call.dtype,
        call.batch,
        call.batch * call.small_size[0] * call.small_size[1],
        call.big_channels,
        call.small_channels,
        call.kernel_size,
        call.stride,
    )


#: A recorded call takes some 50 us more in Python than torch's. Few pixels save it in all three
#: directions together; more of them in two, or in the weight gradient alone; many in any.
_MORE_PIXELS, _MANY_PIXELS = 1024, 16384


def wins_recorded(call: Any) -> bool:
    """Whether a call for which these kernels are chosen wins forward and backward together."""
    fprop, dgrad, wgrad = (wins_forward(call, direction) for direction in DIRECTIONS)
    pixels = _convolution(call).pixels
    if pixels < _MORE_PIXELS:
        return fprop and dgrad and wgrad
    return wgrad or (fprop and dgrad) or (pixels >= _MANY_PIXELS and (fprop or dgrad))


def wins_forward(call: Any, direction: str) -> bool:
    """Whether such a call wins in one direction, not activated."""
    level = _level()
    return level is not None and winning_algorithm(level, direction, _convolution(call)) is not None


def prefers_convolution(call: Any) -> str | None:
    """Return why torch's convolution serves the call instead, or None."""
    if not call.channels_last:
        return NCHW
    asked = _convolution(call)
    wins = [win for win in CONVOLUTION_WINS if win.holds(asked)]
    reason = None if wins else "torch's convolution is faster or not measured for such a layer"
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


@functools.lru_cache(maxsize=4096)
def _algorithm(
    level: str,
    direction: str,
    given: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Pair,
    dtype: torch.dtype,
    activation: str = "identity",
    padding: Pair | None = None,
) -> str | None:
    """Return `winning_algorithm`'s answer for a call as its launcher knows it.

    `given` is the shape of the small side; with `padding`, of the big side.
    """
    batch, _, *size = given
    small = size if padding is None else small_size(size, weight[2:], stride, padding)
    pixels = batch * small[0] * small[1]
    call = (dtype, batch, pixels, weight[1], weight[0], tuple(weight[2:]), stride)
    return winning_algorithm(level, direction, (*call, activation != "identity"))


def convolution_launchers(reference: Launchers | None = None) -> Launchers:
    """Return fprop, dgrad and wgrad: native, or by `reference` where that was measured to win.

    A call's forward and backward are computed by one implementation; which of its directions torch
    computes faster is decided here, one by one.
    """
    insisted, torchs = reference is None, reference or {}

    def algorithm_of(direction: str, *call: Any) -> str | None:
        """Return the algorithm to take, or None where torch's convolution wins."""
        _require()
        found = _algorithm(_level() or "", direction, *call)
        return "direct" if found is None and insisted else found

    def fprop(big, weight, bias, stride, padding, activation, negative_slope):
        algorithm = algorithm_of(
            "fprop", big.shape, weight.shape, stride, big.dtype, activation, padding
        )
        if algorithm is None:
            return torchs["fprop"](big, weight, bias, stride, padding, activation, negative_slope)
        return native_convolution.fprop(
            big, weight, bias, stride=stride, padding=padding,
            activation=activation, negative_slope=negative_slope, algorithm=algorithm,
        )  # fmt: skip

    def dgrad(small, weight, bias, big_size, stride, padding, activation, negative_slope):
        algorithm = algorithm_of(
            "dgrad", small.shape, weight.shape, stride, small.dtype, activation
        )
        if algorithm is None:
            return torchs["dgrad"](
                small, weight, bias, big_size, stride, padding, activation, negative_slope
            )
        return native_convolution.dgrad(
            small, weight, bias, big_size=big_size, stride=stride, padding=padding,
            activation=activation, negative_slope=negative_slope, algorithm=algorithm,
        )  # fmt: skip

    def wgrad(big, small, kernel_size, stride, padding, out_dtype):
        weight = (small.shape[1], big.shape[1], *kernel_size)
        algorithm = algorithm_of("wgrad", small.shape, weight, stride, big.dtype)
        if algorithm is None:
            return torchs["wgrad"](big, small, kernel_size, stride, padding, out_dtype)
        return native_convolution.wgrad(
            big, small, kernel_size=kernel_size, stride=stride, padding=padding,
            out_dtype=out_dtype, algorithm=algorithm,
        )  # fmt: skip

    return {"fprop": fprop, "dgrad": dgrad, "wgrad": wgrad}


def _prefers_batch_norm(call: Any) -> str | None:
    fewest = fewest_batch_norm_elements(
        call.training, call.dtype, call.activation != "identity", call.channels, call.recorded
    )
    return prefers_elementwise(call.channels_last, call.elements, fewest)


BATCH_NORM_ACT = Implementation(
    "cpu",
    lambda call: supports(call.device, call.dtype),
    _prefers_batch_norm,
    batch_norm_launchers(native_kernels, _require),
)


def _prefers_bias_act(call: Any) -> str | None:
    if call.bias_dtype is None and call.activation == "identity":
        return "there is nothing to compute"
    fewest = fewest_bias_act_elements(call.dtype, call.activation, call.channels, call.recorded)
    return prefers_elementwise(call.channels_last, call.elements, fewest)


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


def _image_batch(
    images: torch.Tensor, indices: torch.Tensor, flips: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    _require()
    return native_images.gather(images, indices, flips, dtype)


IMAGE_BATCH = Implementation(
    "cpu",
    lambda call: supports(call.device, call.dtype),
    lambda call: prefers_elementwise(True),
    _image_batch,
)
