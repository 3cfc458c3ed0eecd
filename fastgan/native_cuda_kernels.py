"""Launchers of the CUDA C++ kernels: they allocate the results and call `torch.ops.fastgan_cuda`.

The twins of the Triton launchers in fastgan.kernels, with the same names and arguments. Tensors are
dense channels_last (physically NHWC) and already checked; nothing here knows of autograd or
autocast. `fastgan.native_cuda.usable()` says whether they can be called. Results are bit-identical
from run to run on one kind of device; accumulation and statistics are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan import native_cuda
from fastgan.convolution_sizes import Pair, fprop_shape
from fastgan.native_kernels import ACTIVATIONS, DTYPES, OBJECTIVES, vector

#: Images have at most so many channels; for others there are no CUDA convolutions.
IMAGE_CHANNELS = 4
#: How batch norm moves the tensor, in the order of `enum class Variant` (csrc/cuda/kernels.h).
VARIANTS = {"automatic": 0, "streaming": 1, "resident": 2}


def unsupported(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a call with data of this kind cannot be served, or None; builds nothing."""
    if device.type != "cuda":
        return f"CUDA kernels run on CUDA devices, not on {device.type}"
    if dtype not in DTYPES:
        return f"CUDA kernels take float32, bfloat16 and float16, not {dtype}"
    return native_cuda.obstacle()


def unsupported_convolution(
    *, device: torch.device, dtype: torch.dtype, big_channels: int, groups: int, dilation: Pair
) -> str | None:
    """Return why a convolution cannot be served, or None; builds nothing."""
    if not 1 <= big_channels <= IMAGE_CHANNELS:
        return f"CUDA convolutions are for images of 1 to 4 channels, not {big_channels}"
    if groups != 1 or dilation != (1, 1):
        return "CUDA convolutions have neither groups nor dilation"
    return unsupported(device=device, dtype=dtype)


def _operators() -> Any:
    reason = native_cuda.usable()
    if reason is not None:
        raise RuntimeError(f"the CUDA kernels are not loaded: {reason}")
    return torch.ops.fastgan_cuda


def _vector_like(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def forward_training(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    stat_groups: int,
    variant: str = "automatic",
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with the statistics of each group, then the activation.

    Args:
        x: [N, C, ...], dense channels_last; N is divisible by stat_groups.
        running_mean, running_var: [C], both or neither; advanced once a group, in order, in place.
        weight, bias: [C] or None.
        momentum, eps, activation, negative_slope: as in `fastgan.ops.batch_norm_act`.
        variant: a name in `VARIANTS`; "resident" is refused where the tensor does not fit.

    Returns:
        (y like x, mean [stat_groups, C], inverse deviation [stat_groups, C], both float32).
    """
    y = torch.empty_like(x)
    mean, invstd = (_vector_like(x, stat_groups, x.shape[1]) for _ in range(2))
    if x.numel() == 0:
        return y, mean.zero_(), invstd.zero_()
    running = [vector(running_mean), vector(running_var)]
    with torch.cuda.device_of(x):
        _operators().batch_norm_forward(
            x, y, vector(weight), vector(bias), mean, invstd, *running, momentum, eps,
            ACTIVATIONS[activation], negative_slope, stat_groups, True, VARIANTS[variant],
        )  # fmt: skip
    for given, used in zip((running_mean, running_var), running, strict=True):
        if given is not None and used is not None and given.data_ptr() != used.data_ptr():
            given.copy_(used)  # another dtype or layout than the kernel's
    return y, mean, invstd


def forward_inference(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Batch norm with the running statistics, then the activation; arguments as above."""
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _operators().batch_norm_forward(
            x, y, vector(weight), vector(bias), None, None, vector(running_mean),
            vector(running_var), 0.0, eps, ACTIVATIONS[activation], negative_slope, 1, False,
            VARIANTS["automatic"],
        )  # fmt: skip
    return y


def backward(
    grad_y: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    activation: str,
    negative_slope: float,
    stat_groups: int,
    training: bool,
    variant: str = "automatic",
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of batch norm and activation.

    Args:
        grad_y, x: [N, C, ...], dense channels_last, of one dtype.
        mean, invstd: [stat_groups, C] as the forward returned them; if not `training`, [1, C] of
            the running statistics, constants in the derivative.
        variant: a name in `VARIANTS`.

    Returns:
        (grad_x like x, grad_weight [C], grad_bias [C], the last two float32).
    """
    grad_x = torch.empty_like(x)
    grad_weight, grad_bias = (_vector_like(x, x.shape[1]) for _ in range(2))
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    with torch.cuda.device_of(x):
        _operators().batch_norm_backward(
            grad_y, x, grad_x, vector(weight), vector(bias), vector(mean), vector(invstd),
            grad_weight, grad_bias, ACTIVATIONS[activation], negative_slope,
            stat_groups if training else 1, training, VARIANTS[variant],
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def bias_act_forward(
    x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> Tensor:
    """Add `bias` [C] (or None) along dimension 1 of x [N, C, ...], then activate."""
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _operators().bias_act_forward(x, vector(bias), y, ACTIVATIONS[activation], negative_slope)
    return y


def bias_act_backward(
    grad_y: Tensor, x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor | None]:
    """Return (grad_x like x, grad_bias [C] float32, or None without a bias)."""
    grad_x = torch.empty_like(x)
    grad_bias = None if bias is None else _vector_like(x, x.shape[1])
    if x.numel() == 0:
        return grad_x, None if grad_bias is None else grad_bias.zero_()
    with torch.cuda.device_of(x):
        _operators().bias_act_backward(
            grad_y, x, vector(bias), grad_x, grad_bias, ACTIVATIONS[activation], negative_slope
        )
    return grad_x, grad_bias


def discriminator(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    objective: str,
    real_label: float,
    fake_label: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The discriminator's loss from contiguous logits of any shape and one dtype.

    Returns:
        (loss, mean D(x), mean D(G(z)), float32 scalars; gradients of the loss with respect to
        real_logits and fake_logits, in their dtype).
    """
    grad_real, grad_fake = torch.empty_like(real_logits), torch.empty_like(fake_logits)
    results = _vector_like(fake_logits, 3)
    with torch.cuda.device_of(fake_logits):
        _operators().discriminator_loss(
            real_logits, fake_logits, grad_real, grad_fake, results,
            OBJECTIVES[objective], real_label, fake_label,
        )  # fmt: skip
    loss, real_mean, fake_mean = results.unbind()
    return loss, real_mean, fake_mean, grad_real, grad_fake


def generator(fake_logits: Tensor, *, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """The generator's loss: (loss, mean D(G(z)), gradient), as in `discriminator`."""
    grad_fake = torch.empty_like(fake_logits)
    results = _vector_like(fake_logits, 2)
    with torch.cuda.device_of(fake_logits):
        _operators().generator_loss(fake_logits, grad_fake, results, OBJECTIVES[objective])
    loss, fake_mean = results.unbind()
    return loss, fake_mean, grad_fake


def _channels_last(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An unfilled tensor of logical shape [N, C, H, W] that lies densely as [N, H, W, C]."""
    n, c, h, w = shape
    return torch.empty((n, h, w, c), dtype=dtype, device=like.device).permute(0, 3, 1, 2)


def fprop(
    big: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    allow_tf32: bool = False,
) -> Tensor:
    """The convolution of an image: `act(F.conv2d(big, weight, bias, stride, padding))`.

    Args:
        big: [N, B, H, W] with B at most 4, dense channels_last.
        weight: [S, B, kh, kw] of big's dtype, dense channels_last.
        bias: [S] or None.
        stride, padding: (vertical, horizontal).
        allow_tf32: float32 stays float32 whatever is allowed.

    Returns:
        [N, S, OH, OW] of big's dtype, dense channels_last.
    """
    small = _channels_last(big, fprop_shape(big, weight, stride, padding), big.dtype)
    with torch.cuda.device_of(big):
        _operators().image_fprop(
            big, weight, vector(bias), small, *stride, *padding, ACTIVATIONS[activation],
            negative_slope,
        )  # fmt: skip
    return small


def dgrad(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    big_size: Pair,
    stride: Pair,
    padding: Pair,
    activation: str = "identity",
    negative_slope: float = 0.01,
    allow_tf32: bool = False,
) -> Tensor:
    """The transposed convolution to an image: `act(F.conv_transpose2d(small, weight, bias, ...))`.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] with B at most 4, of small's dtype, dense channels_last.
        bias: [B] or None.
        big_size: (H, W) of the result; says what output_padding would.
        stride, padding: (vertical, horizontal).
        allow_tf32: float32 stays float32 whatever is allowed.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.
    """
    big = _channels_last(small, (small.shape[0], weight.shape[1], *big_size), small.dtype)
    with torch.cuda.device_of(small):
        _operators().image_dgrad(
            small, weight, vector(bias), big, *stride, *padding, ACTIVATIONS[activation],
            negative_slope,
        )  # fmt: skip
    return big


def wgrad(
    big: Tensor,
    small: Tensor,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    allow_tf32: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The weight gradient [S, B, kh, kw] of a convolution of an image, dense channels_last.

    Args:
        big: [N, B, H, W] with B at most 4.
        small: [N, S, OH, OW] of big's dtype; both dense channels_last.
        kernel_size, stride, padding: (vertical, horizontal).
        allow_tf32: float32 stays float32 whatever is allowed.
        out_dtype: of the result; big's if None.
    """
    shape = (small.shape[1], big.shape[1], *kernel_size)
    weight = _channels_last(big, shape, out_dtype or big.dtype)
    with torch.cuda.device_of(big):
        _operators().image_wgrad(big, small, weight, *stride, *padding)
    return weight


def pack_into(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Cast weights and lay them out for the kernels, many in one launch.

    Args:
        sources: float32 [S, B, kh, kw] of any strides, all on one device.
        targets: of the same shapes, dense channels_last, all of one dtype; written.
    """
    if sources:
        with torch.cuda.device_of(sources[0]):
            _operators().pack_weights(list(sources), list(targets))
