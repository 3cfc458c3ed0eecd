"""Launchers of the native CPU kernels: they allocate the results and call `torch.ops.fastgan_cpu`.

The twins of the Triton launchers in fastgan.kernels, with the same names and arguments. Tensors are
dense channels_last (physically NHWC) and already checked; nothing here knows of autograd or
autocast. `usable()` says whether they can be called. Results are bit-identical from run to run and
for any number of threads; accumulation is in float32 or better, rounding to nearest even.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan import native
from fastgan.native_fusion import Prologue, Statistics

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: In the order of `enum class Activation` (csrc/common/activation.h).
ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}
#: In the order of `enum class Algorithm` (csrc/cpu/kernels.h): how a convolution's sums are made.
#: "direct" serves every call; "winograd", with 9 products where 16 are summed, serves what
#: `unsupported_by_winograd` has no objection to.
ALGORITHMS = {"direct": 0, "winograd": 1}
#: In the order of `enum class Objective` (csrc/common/objectives.h).
OBJECTIVES = {
    "bce": 0,
    "minimax": 1,
    "non_saturating": 2,
    "least_squares": 3,
    "wasserstein": 4,
    "hinge": 5,
    "kl": 6,
    "reverse_kl": 7,
    "pearson_chi2": 8,
    "squared_hellinger": 9,
    "jensen_shannon": 10,
    "gan": 11,
}


def usable() -> str | None:
    """Return why the native kernels cannot be called, or None if they can.

    The first call may build them (see `fastgan.native`).

    Raises:
        NativeBuildError: FASTGAN_NATIVE=require, and they cannot be had.
    """
    return None if native.extension() is not None else native.reason()


def unsupported(*, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a call with data of this kind cannot be served, or None; builds nothing."""
    if device.type != "cpu":
        return f"native kernels run on the CPU, not on {device.type}"
    if dtype not in DTYPES:
        return f"native kernels take float32, bfloat16 and float16, not {dtype}"
    return None


def small_shape(
    big: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, ...]:
    """Return the shape [N, S, OH, OW] that `fprop` makes of these."""
    size = (
        (length + 2 * pad - kernel) // step + 1
        for length, kernel, step, pad in zip(
            big.shape[2:], weight.shape[2:], stride, padding, strict=True
        )
    )
    return (big.shape[0], weight.shape[0], *size)


def unsupported_by_winograd(
    *, dtype: torch.dtype, kernel_size: tuple[int, int], stride: tuple[int, int]
) -> str | None:
    """Return why algorithm="winograd" cannot serve a convolution, or None.

    Neither a prologue nor statistics can be had with it.

    Float32 alone: its transformed operands rounded to 16 bits would be less exact than the data.
    """
    if (dtype, kernel_size, stride) == (torch.float32, (4, 4), (2, 2)):
        return None
    return "Winograd's tiles serve float32 with 4x4 kernels of stride 2 alone"


def _operators() -> Any:
    if native.extension() is None:
        raise RuntimeError(f"native kernels are not loaded: {native.reason()}")
    return torch.ops.fastgan_cpu


def _vector(values: Tensor | None) -> Tensor | None:
    """A parameter as the kernels read it: contiguous float32."""
    return None if values is None else values.detach().float().contiguous()


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
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with the statistics of each group, then the activation.

    Args:
        x: [N, C, ...], dense channels_last; N is divisible by stat_groups.
        running_mean, running_var: [C] or None; advanced once a group, in order, in place.
        weight, bias: [C] or None.
        momentum, eps, activation, negative_slope: as in `fastgan.ops.batch_norm_act`.
        statistics: of x, from the convolution that made it; x is then read once instead of twice.

    Returns:
        (y like x, mean [stat_groups, C], inverse deviation [stat_groups, C], both float32).
    """
    y = torch.empty_like(x)
    given = None if statistics is None else statistics.m2
    if statistics is None:
        mean = torch.empty((stat_groups, x.shape[1]), dtype=torch.float32)
    else:
        mean = statistics.mean
    invstd = torch.empty_like(mean)
    running = [_vector(running_mean), _vector(running_var)]
    _operators().batch_norm_forward(
        x, y, _vector(weight), _vector(bias), mean, invstd, *running,
        momentum, eps, ACTIVATIONS[activation], negative_slope, stat_groups, True, given,
    )  # fmt: skip
    _copy_back(running, running_mean, running_var)
    return y, mean, invstd


def _copy_back(used: list[Tensor | None], *buffers: Tensor | None) -> None:
    """Carry the kernel's writes into running statistics of another dtype or layout than its own."""
    for buffer, written in zip(buffers, used, strict=True):
        if buffer is not None and written is not None and buffer.data_ptr() != written.data_ptr():
            buffer.copy_(written)


def coefficients(
    statistics: Statistics,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    rows: int,
    momentum: float,
    eps: float,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Prologue]:
    """Batch norm of a convolution's result whose values the next convolution normalises itself.

    Args:
        statistics: of the result, as its convolution filled them.
        running_mean, running_var, weight, bias: [C] or None; the first two advance as in
            `forward_training`.
        rows: values of one channel in one group, N / stat_groups * H * W.
        momentum, eps: as in `fastgan.ops.batch_norm_act`.
        activation, negative_slope: of the prologue.

    Returns:
        (mean [stat_groups, C], inverse deviation [stat_groups, C], the prologue that normalises
        and activates the result).
    """
    mean = statistics.mean
    invstd, scale, shift = (torch.empty_like(mean) for _ in range(3))
    running = [_vector(running_mean), _vector(running_var)]
    _operators().batch_norm_coefficients(
        mean, statistics.m2, _vector(weight), _vector(bias), invstd, scale, shift, *running,
        momentum, eps, rows,
    )  # fmt: skip
    _copy_back(running, running_mean, running_var)
    return mean, invstd, Prologue(scale, shift, activation, negative_slope)


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
    invstd = torch.rsqrt(running_var.double() + eps).float()
    _operators().batch_norm_forward(
        x, y, _vector(weight), _vector(bias), _vector(running_mean), invstd, None, None,
        0.0, eps, ACTIVATIONS[activation], negative_slope, 1, False,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of batch norm and activation.

    Args:
        grad_y, x: [N, C, ...], dense channels_last, of one dtype.
        mean, invstd: [stat_groups, C] as the forward returned them; if not `training`, [1, C] of
            the running statistics, constants in the derivative.

    Returns:
        (grad_x like x, grad_weight [C], grad_bias [C], the last two float32).
    """
    grad_x = torch.empty_like(x)
    grad_weight = torch.empty(x.shape[1], dtype=torch.float32)
    grad_bias = torch.empty_like(grad_weight)
    _operators().batch_norm_backward(
        grad_y, x, grad_x, _vector(weight), _vector(bias), _vector(mean), _vector(invstd),
        grad_weight, grad_bias, ACTIVATIONS[activation], negative_slope,
        stat_groups if training else 1, training,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def bias_act_forward(
    x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> Tensor:
    """Add `bias` [C] (or None) along dimension 1 of x [N, C, ...], then activate."""
    y = torch.empty_like(x)
    _operators().bias_act_forward(x, _vector(bias), y, ACTIVATIONS[activation], negative_slope)
    return y


def bias_act_backward(
    grad_y: Tensor, x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor | None]:
    """Return (grad_x like x, grad_bias [C] float32, or None without a bias)."""
    grad_x = torch.empty_like(x)
    grad_bias = None if bias is None else torch.empty(x.shape[1], dtype=torch.float32)
    _operators().bias_act_backward(
        grad_y, x, _vector(bias), grad_x, grad_bias, ACTIVATIONS[activation], negative_slope
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
    results = torch.empty(3, dtype=torch.float32)
    _operators().discriminator_loss(
        real_logits, fake_logits, grad_real, grad_fake, results,
        OBJECTIVES[objective], real_label, fake_label,
    )  # fmt: skip
    loss, real_mean, fake_mean = results.unbind()
    return loss, real_mean, fake_mean, grad_real, grad_fake


def generator(fake_logits: Tensor, *, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """The generator's loss: (loss, mean D(G(z)), gradient), as in `discriminator`."""
    grad_fake = torch.empty_like(fake_logits)
    results = torch.empty(2, dtype=torch.float32)
    _operators().generator_loss(fake_logits, grad_fake, results, OBJECTIVES[objective])
    loss, fake_mean = results.unbind()
    return loss, fake_mean, grad_fake


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _fused(prologue: Prologue | None, statistics: Statistics | None) -> tuple[Any, ...]:
    """The operators' arguments for a prologue and statistics; none where there are neither."""
    if prologue is None and statistics is None:
        return ()
    read: tuple[Any, ...] = (None, None, 0, 0.0)
    if prologue is not None:
        read = (
            prologue.scale, prologue.shift,
            ACTIVATIONS[prologue.activation], prologue.negative_slope,
        )  # fmt: skip
    return read if statistics is None else (*read, statistics.mean, statistics.m2)


def fprop(
    big: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: str = "identity",
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    statistics: Statistics | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The convolution big -> small: `act(F.conv2d(big, weight, bias, stride, padding))`.

    Args:
        big: [N, B, H, W], dense channels_last.
        weight: [S, B, kh, kw] of big's dtype, dense channels_last (physically [S, kh, kw, B]).
        bias: [S] or None.
        stride, padding: (vertical, horizontal).
        activation, negative_slope: applied in the epilogue.
        prologue: how big is read; None: as it is.
        statistics: filled with those of the result; the activation must be "identity".
        algorithm: one of `ALGORITHMS`.

    Raises:
        RuntimeError: an argument does not fit (it is named), or the algorithm does not serve it.

    Returns:
        [N, S, OH, OW] of big's dtype, dense channels_last.
    """
    small = _channels_last(small_shape(big, weight, stride, padding), big.dtype)
    _operators().fprop(
        big, weight, _vector(bias), small, *stride, *padding,
        ACTIVATIONS[activation], negative_slope, *_fused(prologue, statistics),
        algorithm=ALGORITHMS[algorithm],
    )  # fmt: skip
    return small


def dgrad(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    big_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: str = "identity",
    negative_slope: float = 0.01,
    prologue: Prologue | None = None,
    statistics: Statistics | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The transposed convolution small -> big; also fprop's gradient with respect to big.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] of small's dtype, dense channels_last.
        bias: [B] or None.
        big_size: (H, W) of the result; output_padding is what it is larger than the least.
        prologue, statistics: as in `fprop`, of small and of the result.
        stride, padding, activation, negative_slope, algorithm: as in `fprop`.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.

    Raises:
        RuntimeError: as `fprop`.
    """
    big = _channels_last((small.shape[0], weight.shape[1], *big_size), small.dtype)
    _operators().dgrad(
        small, weight, _vector(bias), big, *stride, *padding,
        ACTIVATIONS[activation], negative_slope, *_fused(prologue, statistics),
        algorithm=ALGORITHMS[algorithm],
    )  # fmt: skip
    return big


def wgrad(
    big: Tensor,
    small: Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    out_dtype: torch.dtype | None = None,
    big_prologue: Prologue | None = None,
    small_prologue: Prologue | None = None,
    algorithm: str = "direct",
) -> Tensor:
    """The weight gradient [S, B, kh, kw], dense channels_last, of both convolutions.

    Args:
        big: [N, B, H, W]; small: [N, S, OH, OW]; dense channels_last, of one dtype.
        kernel_size, stride, padding: (vertical, horizontal).
        out_dtype: of the result; None for big's.
        big_prologue, small_prologue: how the operands are read; one of them at most.
        algorithm: one of `ALGORITHMS`.

    Raises:
        ValueError: both have a prologue.
        RuntimeError: as `fprop`.
    """
    if big_prologue is not None and small_prologue is not None:
        raise ValueError("one of big_prologue and small_prologue must be None")
    weight = _channels_last((small.shape[1], big.shape[1], *kernel_size), out_dtype or big.dtype)
    fused: tuple[Any, ...] = ()
    if big_prologue is not None:
        scale, shift, *activation = _fused(big_prologue, None)
        fused = (scale, shift, None, None, *activation)
    elif small_prologue is not None:
        fused = (None, None, *_fused(small_prologue, None))
    _operators().wgrad(
        big, small, weight, *stride, *padding, *fused, algorithm=ALGORITHMS[algorithm]
    )
    return weight
