"""Launchers of the native CPU kernels: they allocate the results and call `torch.ops.fastgan_cpu`.

Batch norm, bias and losses are here, the convolutions in `fastgan.native_convolution`: the twins of
the Triton launchers in fastgan.kernels, with the same names and arguments. Tensors are dense
channels_last (physically NHWC) and already checked; nothing here knows of autograd or autocast.
`usable()` says whether they can be called. Results are bit-identical from run to run and for any
number of threads; accumulation is in float32 or better, rounding to nearest even.
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


def operators() -> Any:
    """Return `torch.ops.fastgan_cpu`.

    Raises:
        RuntimeError: the library is not loaded.
    """
    if native.extension() is None:
        raise RuntimeError(f"native kernels are not loaded: {native.reason()}")
    return torch.ops.fastgan_cpu


def vector(values: Tensor | None) -> Tensor | None:
    """Return a parameter as the kernels read it, contiguous float32; None for None."""
    if values is None:
        return None
    if values.requires_grad:
        values = values.detach()
    if values.dtype != torch.float32:
        values = values.float()
    return values if values.is_contiguous() else values.contiguous()


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
    running = [vector(running_mean), vector(running_var)]
    operators().batch_norm_forward(
        x, y, vector(weight), vector(bias), mean, invstd, *running,
        momentum, eps, ACTIVATIONS[activation], negative_slope, stat_groups, True, given,
    )  # fmt: skip
    _copy_back(running, running_mean, running_var)
    return y, mean, invstd


def _copy_back(used: list[Tensor | None], *buffers: Tensor | None) -> None:
    """Carry the kernel's writes into running statistics of another dtype or layout than its own."""
    for buffer, written in zip(buffers, used, strict=True):
        if buffer is None or written is None or buffer is written:
            continue
        if buffer.data_ptr() != written.data_ptr():
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
    running = [vector(running_mean), vector(running_var)]
    operators().batch_norm_coefficients(
        mean, statistics.m2, vector(weight), vector(bias), invstd, scale, shift, *running,
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
    invstd = torch.rsqrt(running_var.double() + eps).float()
    return normalise(
        x, running_mean[None], invstd[None], weight, bias,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def normalise(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    activation: str,
    negative_slope: float,
) -> Tensor:
    """Batch norm with statistics that are known, then the activation.

    With what `forward_training` returned, its result again, to the bit.

    Args:
        x: [N, C, ...], dense channels_last.
        mean, invstd: [stat_groups, C], of each of as many equal slices of the batch.
        weight, bias: [C] or None.
        activation, negative_slope: as in `fastgan.ops.batch_norm_act`.
    """
    y = torch.empty_like(x)
    operators().batch_norm_forward(
        x, y, vector(weight), vector(bias), vector(mean), vector(invstd), None, None,
        0.0, 0.0, ACTIVATIONS[activation], negative_slope, mean.shape[0], False,
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
    operators().batch_norm_backward(
        grad_y, x, grad_x, vector(weight), vector(bias), vector(mean), vector(invstd),
        grad_weight, grad_bias, ACTIVATIONS[activation], negative_slope,
        stat_groups if training else 1, training,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def bias_act_forward(
    x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> Tensor:
    """Add `bias` [C] (or None) along dimension 1 of x [N, C, ...], then activate."""
    y = torch.empty_like(x)
    operators().bias_act_forward(x, vector(bias), y, ACTIVATIONS[activation], negative_slope)
    return y


def bias_act_backward(
    grad_y: Tensor, x: Tensor, bias: Tensor | None, *, activation: str, negative_slope: float
) -> tuple[Tensor, Tensor | None]:
    """Return (grad_x like x, grad_bias [C] float32, or None without a bias)."""
    grad_x = torch.empty_like(x)
    grad_bias = None if bias is None else torch.empty(x.shape[1], dtype=torch.float32)
    operators().bias_act_backward(
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
    results = torch.empty(3, dtype=torch.float32)
    operators().discriminator_loss(
        real_logits, fake_logits, grad_real, grad_fake, results,
        OBJECTIVES[objective], real_label, fake_label,
    )  # fmt: skip
    loss, real_mean, fake_mean = results.unbind()
    return loss, real_mean, fake_mean, grad_real, grad_fake


def generator(fake_logits: Tensor, *, objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """The generator's loss: (loss, mean D(G(z)), gradient), as in `discriminator`."""
    grad_fake = torch.empty_like(fake_logits)
    results = torch.empty(2, dtype=torch.float32)
    operators().generator_loss(fake_logits, grad_fake, results, OBJECTIVES[objective])
    loss, fake_mean = results.unbind()
    return loss, fake_mean, grad_fake
