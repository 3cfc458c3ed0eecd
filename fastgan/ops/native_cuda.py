"""The CUDA C++ kernels as implementations of the operators: what they serve, and where they win.

An operator's table takes its "cuda" record from here: `supports` and `prefers` of the calls of that
operator, and the launchers of `fastgan.native_cuda_kernels` under the operator's names. Where
Triton is installed its kernels serve unless `WINS` says otherwise; a call that the CUDA kernels
would not win builds nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from fastgan import native_cuda
from fastgan import native_cuda_kernels as kernels
from fastgan.errors import BackendError
from fastgan.ops.implementations import TRITON_INSTALLED, Implementation
from fastgan.ops.native_launchers import (
    batch_norm_launchers,
    bias_act_launchers,
    loss_launchers,
)

#: (compute capability, operator) where these kernels were measured faster than Triton's. Nothing
#: has been measured yet; `python -m bench gpu-check` does it.
WINS: frozenset[tuple[tuple[int, int], str]] = frozenset()

NCHW = "the input is contiguous (NCHW) and would be copied: use torch.channels_last"


@torch.compiler.assume_constant_result
def _missing() -> str | None:
    """Return why the kernels cannot be had, or None; may build them."""
    return native_cuda.usable()


@torch.compiler.assume_constant_result
def _capability(device_index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


def _prefers(operator: str, device: torch.device, channels_last: bool) -> str | None:
    """Return why another implementation serves the call instead, or None."""
    if not channels_last:
        return NCHW
    if TRITON_INSTALLED and (_capability(device.index or 0), operator) not in WINS:
        return "not measured to be faster than Triton's kernels on this device"
    return _missing()


def _require() -> None:
    reason = _missing()
    if reason is not None:
        raise BackendError(f"backend 'cuda' cannot serve this call: {reason}")


def _supports_batch_norm(call: Any) -> str | None:
    running_mean, running_var, *_ = call.parameters
    if (running_mean is None) != (running_var is None):
        return "the CUDA kernels take both running statistics or neither"
    return kernels.unsupported(device=call.device, dtype=call.dtype)


BATCH_NORM_ACT = Implementation(
    "cuda",
    _supports_batch_norm,
    lambda call: _prefers("batch_norm_act", call.device, call.channels_last),
    batch_norm_launchers(kernels, _require),
)


def _prefers_bias_act(call: Any) -> str | None:
    if call.bias_dtype is None:
        return "without a bias torch's own activation is one launch already"
    return _prefers("bias_act", call.device, call.channels_last)


BIAS_ACT = Implementation(
    "cuda",
    lambda call: kernels.unsupported(device=call.device, dtype=call.dtype),
    _prefers_bias_act,
    bias_act_launchers(kernels, _require),
)


def _supports_loss(call: Any) -> str | None:
    if len(set(call.dtypes)) > 1:
        return "the CUDA losses take real and fake logits of one dtype"
    return kernels.unsupported(device=call.device, dtype=call.dtypes[0])


ADVERSARIAL_LOSS = Implementation(
    "cuda",
    _supports_loss,
    lambda call: _prefers("adversarial_loss", call.device, True),
    loss_launchers(kernels, _require),
)


def _fprop(big, weight, bias, stride, padding, activation, negative_slope):
    _require()
    return kernels.fprop(
        big, weight, bias, stride=stride, padding=padding,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def _dgrad(small, weight, bias, big_size, stride, padding, activation, negative_slope):
    _require()
    return kernels.dgrad(
        small, weight, bias, big_size=big_size, stride=stride, padding=padding,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def _wgrad(big, small, kernel_size, stride, padding, out_dtype):
    _require()
    return kernels.wgrad(
        big, small, kernel_size=kernel_size, stride=stride, padding=padding, out_dtype=out_dtype
    )


def _supports_convolution(call: Any) -> str | None:
    return kernels.unsupported_convolution(
        device=call.device,
        dtype=call.dtype,
        big_channels=call.big_channels,
        groups=call.groups,
        dilation=call.dilation,
    )


CONVOLUTION = Implementation(
    "cuda",
    _supports_convolution,
    lambda call: _prefers("convolution", call.device, call.channels_last),
    {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad},
)
