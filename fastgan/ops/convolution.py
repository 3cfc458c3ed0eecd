"""The three convolutions under `conv2d` and `conv_transpose2d`: fprop, dgrad and wgrad.

With w[S, B, kh, kw] (S channels on the small side, B on the big side: torch's layout for the
weights of Conv2d and ConvTranspose2d alike), stride s and padding p, the bilinear form

    <small, big, w> = sum over n, S, B, i, k of small[n, S, i] w[S, B, k] big[n, B, i s - p + k]

has three derivatives, one an argument:

    fprop(big, w)     -> small    Conv2d forward; what ConvTranspose2d's input gradient is
    dgrad(small, w)   -> big      ConvTranspose2d forward; what Conv2d's input gradient is
    wgrad(big, small) -> w        the weight gradient of both

so each one's gradient is made of the other two, and a double backward to any order comes for free.
fprop and dgrad take a bias and an activation in their epilogue; the activation's derivative is read
off the output.

The functions of these names are differentiable; each is an autograd Function outside of an operator
of `torch.ops.fastgan` (registered for CPU and CUDA, with a fake), which calls the implementation
that it is told to. Operators take and return tensors dense in channels_last, weights packed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.convolution_sizes import fprop_shape, smallest_big_size
from fastgan.ops import native_cpu, native_cuda
from fastgan.ops.activations import activate
from fastgan.ops.implementations import transformed
from fastgan.ops.library import register

Launchers = dict[str, Callable[..., Tensor]]


# -------------------------------------------------------------------------- layout


def suggests_channels_last(tensor: Tensor) -> bool:
    """Return whether torch takes the strides of a 4-dimensional tensor for channels_last.

    The rule of c10::is_channels_last_strides_2d: strides grow in the order C, W, H, N, and an
    [N, C, 1, 1] tensor that could be either counts as contiguous.
    """
    sizes = tensor.shape
    if tensor.is_contiguous(memory_format=torch.channels_last) and 1 not in sizes:
        return tensor.numel() > 0
    strides = tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * sizes[d] if sizes[d] > 1 else strides[d]
    return True


def dense(tensor: Tensor) -> Tensor:
    """Return `tensor` dense in channels_last: itself where it is so already."""
    return tensor.contiguous(memory_format=torch.channels_last)


def regular(weight: Tensor) -> Tensor:
    """Return a weight that torch's CPU convolutions take: some refuse strides of a third kind.

    ("slow_conv2d: grad_weight must be contiguous", for a channels_last input and a transposed or
    sliced weight.)
    """
    if weight.is_contiguous() or weight.dim() != 4 or transformed():
        return weight
    if weight.is_contiguous(memory_format=torch.channels_last) and 1 not in weight.shape:
        return weight
    return dense(weight) if suggests_channels_last(weight) else weight.contiguous()


def like_twin(y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `y` laid out as torch's convolution would: channels_last if x or weight is."""
    if suggests_channels_last(x) or suggests_channels_last(weight):
        return dense(y)
    return y.contiguous()


# ----------------------------------------------------------------- implementations


def _reference_fprop(big, weight, bias, stride, padding, activation, negative_slope):
    with torch.autocast(big.device.type, enabled=False):
        bias = None if bias is None else bias.to(big.dtype)
        return activate(F.conv2d(big, weight, bias, stride, padding), activation, negative_slope)


def _reference_dgrad(small, weight, bias, big_size, stride, padding, activation, negative_slope):
    least = smallest_big_size(small.shape[2:], weight.shape[2:], stride, padding)
    extra = (big_size[0] - least[0], big_size[1] - least[1])
    with torch.autocast(small.device.type, enabled=False):
        bias = None if bias is None else bias.to(small.dtype)
        y = F.conv_transpose2d(small, weight, bias, stride, padding, extra)
        return activate(y, activation, negative_slope)


def _reference_wgrad(big, small, kernel_size, stride, padding, out_dtype):
    shape = (small.shape[1], big.shape[1], *kernel_size)
    weight = big.new_empty(1).expand(shape)  # only its shape is read
    _, gradient, _ = torch.ops.aten.convolution_backward(
        small, big, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (False, True, False)
    )
    return gradient.to(out_dtype)


def tf32_allowed() -> bool:
    """Return torch's own switch for TF32 in convolutions, as it stands when the kernel runs."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _triton_fprop(big, weight, bias, stride, padding, activation, negative_slope):
    from fastgan.kernels import convolution as kernels

    return kernels.fprop(
        big,
        weight,
        bias,
        stride=stride,
        padding=padding,
        activation=activation,
        negative_slope=negative_slope,
        allow_tf32=tf32_allowed(),
    )


def _triton_dgrad(small, weight, bias, big_size, stride, padding, activation, negative_slope):
    from fastgan.kernels import convolution as kernels

    return kernels.dgrad(
        small,
        weight,
        bias,
        big_size=big_size,
        stride=stride,
        padding=padding,
        activation=activation,
        negative_slope=negative_slope,
        allow_tf32=tf32_allowed(),
    )


def _triton_wgrad(big, small, kernel_size, stride, padding, out_dtype):
    from fastgan.kernels import convolution as kernels

    return kernels.wgrad(
        big,
        small,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        allow_tf32=tf32_allowed(),
        out_dtype=out_dtype,
    )


REFERENCE: Launchers = {
    "fprop": _reference_fprop,
    "dgrad": _reference_dgrad,
    "wgrad": _reference_wgrad,
}
TRITON: Launchers = {"fprop": _triton_fprop, "dgrad": _triton_dgrad, "wgrad": _triton_wgrad}
#: Chosen and not insisted on, the native CPU kernels leave to torch the directions that it wins.
CPU_WHERE_IT_WINS = "cpu where it wins"
LAUNCHERS: dict[str, Launchers] = {
    "reference": REFERENCE,
    "triton": TRITON,
    "cuda": native_cuda.CONVOLUTION.run,
    "cpu": native_cpu.convolution_launchers(),
    CPU_WHERE_IT_WINS: native_cpu.convolution_launchers(REFERENCE),
}


# -------------------------------------------------------- operators of torch.ops.fastgan


def _empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(
        shape,
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _run_fprop(big, weight, bias, stride, padding, activation, negative_slope, implementation):
    if big.shape[0] == 0:
        return _empty(big, fprop_shape(big, weight, stride, padding))
    run = LAUNCHERS[implementation]["fprop"]
    stride, padding = tuple(stride), tuple(padding)
    return dense(run(big, weight, bias, stride, padding, activation, negative_slope))


def _fake_fprop(big, weight, bias, stride, padding, activation, negative_slope, implementation):
    return _empty(big, fprop_shape(big, weight, stride, padding))


def _run_dgrad(
    small, weight, bias, big_size, stride, padding, activation, negative_slope, implementation
):
    if small.shape[0] == 0:
        return _empty(small, (0, weight.shape[1], *big_size))
    run = LAUNCHERS[implementation]["dgrad"]
    big_size, stride, padding = tuple(big_size), tuple(stride), tuple(padding)
    return dense(run(small, weight, bias, big_size, stride, padding, activation, negative_slope))


def _fake_dgrad(
    small, weight, bias, big_size, stride, padding, activation, negative_slope, implementation
):
    return _empty(small, (small.shape[0], weight.shape[1], *big_size))


def _run_wgrad(big, small, kernel_size, stride, padding, out_dtype, implementation):
    if big.shape[0] == 0:
        return _empty(big, (small.shape[1], big.shape[1], *kernel_size), out_dtype).zero_()
    run = LAUNCHERS[implementation]["wgrad"]
    kernel_size, stride, padding = tuple(kernel_size), tuple(stride), tuple(padding)
    return dense(run(big, small, kernel_size, stride, padding, out_dtype))


def _fake_wgrad(big, small, kernel_size, stride, padding, out_dtype, implementation):
    return _empty(big, (small.shape[1], big.shape[1], *kernel_size), out_dtype)


_EPILOGUE = "str activation, float negative_slope, str implementation"
fprop_operator = register(
    "conv_fprop(Tensor big, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, "
    f"{_EPILOGUE}) -> Tensor",
    _run_fprop,
    _fake_fprop,
)
dgrad_operator = register(
    "conv_dgrad(Tensor small, Tensor weight, Tensor? bias, SymInt[2] big_size, SymInt[2] stride, "
    f"SymInt[2] padding, {_EPILOGUE}) -> Tensor",
    _run_dgrad,
    _fake_dgrad,
)
wgrad_operator = register(
    "conv_wgrad(Tensor big, Tensor small, SymInt[2] kernel_size, SymInt[2] stride, "
    "SymInt[2] padding, ScalarType out_dtype, str implementation) -> Tensor",
    _run_wgrad,
    _fake_wgrad,
)
