"""The convolution family: fprop, dgrad and wgrad, each served by the kernel that its shape wants.

With w [S, B, kh, kw] three products serve `Conv2d` and `ConvTranspose2d`, forward and backward
(B channels on the big side, S on the small side). Tensors are dense channels_last, physically NHWC;
sizes, strides and padding are free, groups and dilation are 1. Nothing here knows of autograd or
autocast: callers pass checked tensors of one dtype.

Kernel size and spatial sizes are compile-time constants (pixel indices then divide by shifts and
multiplications, which halves what a program does before its first product); the batch and the
channels are not, so a network of fixed image size compiles each layer once.
"""

from __future__ import annotations

import torch

from fastgan.convolution_sizes import small_size
from fastgan.kernels.activation import ACTIVATIONS
from fastgan.kernels.conv_dgrad import launch_dgrad
from fastgan.kernels.conv_dgrad_image import launch_dgrad_image, row_columns
from fastgan.kernels.conv_fprop import launch_fprop
from fastgan.kernels.conv_fprop_image import launch_dgrad_from_image, launch_fprop_image
from fastgan.kernels.conv_launch import Geometry
from fastgan.kernels.conv_wgrad import launch_wgrad

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Images have so few channels that their kernels flatten them together with taps or phases.
IMAGE_CHANNELS = 4
# Columns (phases x padded channels) up to which all phases go into one product.
IMAGE_COLUMNS = 64


def fprop(
    big: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: str = "identity",
    negative_slope: float = 0.01,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """The convolution big -> small: `act(F.conv2d(big, weight, bias, stride, padding))`.

    Args:
        big: [N, B, H, W], dense channels_last.
        weight: [S, B, kh, kw] of big's dtype, dense channels_last (physically [S, kh, kw, B]).
        bias: [S], float32 or big's dtype.
        stride, padding: (vertical, horizontal).
        activation: a name in `activation.ACTIVATIONS`.
        negative_slope: of leaky_relu.
        allow_tf32: float32 operands may be rounded to TF32.

    Returns:
        [N, S, OH, OW] of big's dtype, dense channels_last.
    """
    batch, big_channels, big_h, big_w = big.shape
    small_channels, _, kernel_h, kernel_w = weight.shape
    geometry = Geometry(
        batch, big_h, big_w, big_channels,
        *small_size((big_h, big_w), (kernel_h, kernel_w), stride, padding),
        small_channels, kernel_h, kernel_w, *stride, *padding,
    )  # fmt: skip
    launch = launch_fprop_image if big_channels <= IMAGE_CHANNELS else launch_fprop
    return launch(
        big,
        weight,
        bias,
        geometry,
        activation=activation,
        negative_slope=negative_slope,
        allow_tf32=allow_tf32,
    )


def dgrad(
    small: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    big_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    activation: str = "identity",
    negative_slope: float = 0.01,
    allow_tf32: bool = False,
) -> torch.Tensor:
    """The transposed convolution small -> big: `act(F.conv_transpose2d(small, weight, bias, ...))`.

    Args:
        small: [N, S, OH, OW], dense channels_last.
        weight: [S, B, kh, kw] of small's dtype, dense channels_last (physically [S, kh, kw, B]).
        bias: [B], float32 or small's dtype.
        big_size: (H, W) of the result; says what output_padding would.
        stride, padding: (vertical, horizontal).
        activation: a name in `activation.ACTIVATIONS`.
        negative_slope: of leaky_relu.
        allow_tf32: float32 operands may be rounded to TF32.

    Returns:
        [N, B, H, W] of small's dtype, dense channels_last.
    """
    geometry = _geometry_from_small(small, weight.shape, big_size, stride, padding)
    columns = stride[0] * row_columns(stride[1], geometry.big_channels)
    if geometry.big_channels <= IMAGE_CHANNELS and columns <= IMAGE_COLUMNS:
        launch = launch_dgrad_image
    elif geometry.small_channels <= IMAGE_CHANNELS and tuple(stride) == (1, 1):
        launch = launch_dgrad_from_image
    else:
        launch = launch_dgrad
    return launch(
        small,
        weight,
        bias,
        geometry,
        activation=activation,
        negative_slope=negative_slope,
        allow_tf32=allow_tf32,
    )


def wgrad(
    big: torch.Tensor,
    small: torch.Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    allow_tf32: bool = False,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The weight gradient: `torch.nn.grad.conv2d_weight(big, ..., small, stride, padding)`.

    Args:
        big: [N, B, H, W], dense channels_last: input of a convolution.
        small: [N, S, OH, OW] of big's dtype, dense channels_last: gradient at its output.
        kernel_size, stride, padding: (vertical, horizontal).
        allow_tf32: float32 operands may be rounded to TF32.
        out_dtype: of the result, which is summed in float32; None is big's.

    Returns:
        [S, B, kh, kw], dense channels_last; zeros for an empty batch. The same bits on every run
        of the same shape on the same device.
    """
    shape = (small.shape[1], big.shape[1], *kernel_size)
    geometry = _geometry_from_small(small, shape, (big.shape[2], big.shape[3]), stride, padding)
    return launch_wgrad(big, small, geometry, allow_tf32=allow_tf32, out_dtype=out_dtype)


def unsupported(
    direction: str,
    *,
    dtype: torch.dtype,
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
    activation: str = "identity",
) -> str | None:
    """Why these kernels cannot serve a call; None if they can.

    Args:
        direction: "fprop", "dgrad" or "wgrad".
        dtype: of the data and the weight.
        groups, dilation, activation: of the call.
    """
    if direction not in ("fprop", "dgrad", "wgrad"):
        raise ValueError(f"direction is {direction!r}, must be 'fprop', 'dgrad' or 'wgrad'")
    if dtype not in DTYPES:
        return f"dtype is {dtype}, the kernels have float32, bfloat16 and float16"
    if groups != 1:
        return f"groups is {groups}, the kernels have 1"
    if tuple(dilation) != (1, 1):
        return f"dilation is {tuple(dilation)}, the kernels have (1, 1)"
    if activation not in ACTIVATIONS:
        return f"activation is {activation!r}, the kernels have {', '.join(ACTIVATIONS)}"
    return None


def _geometry_from_small(
    small: torch.Tensor,
    weight_shape: tuple[int, ...],
    big_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Geometry:
    batch, small_channels, small_h, small_w = small.shape
    _, big_channels, kernel_h, kernel_w = weight_shape
    return Geometry(
        batch, *big_size, big_channels, small_h, small_w, small_channels,
        kernel_h, kernel_w, *stride, *padding,
    )  # fmt: skip
