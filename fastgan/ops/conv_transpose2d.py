"""Transposed convolution with an activation in its epilogue: the twin of `F.conv_transpose2d`.

    y[n, B, o] = act(bias[B] + sum over S and i s - p + k = o of w[S, B, k] x[n, S, i])

It is a convolution's input gradient: forward is `convolution.dgrad`; its derivatives, to any order,
are fprop, wgrad and dgrad again. An input of one unpadded pixel (a DCGAN generator's stem) makes it
a matrix product, computed as one. Groups and dilation other than 1 are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.activations import activate, activate_fresh, check_activation
from fastgan.ops.convolution import like_twin, regular, suggests_channels_last
from fastgan.ops.convolution_autograd import dgrad
from fastgan.ops.convolution_plan import PairArgument, implementation_of, plan
from fastgan.ops.packing import cast


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: PairArgument = 1,
    padding: PairArgument = 0,
    output_padding: PairArgument = 0,
    groups: int = 1,
    dilation: PairArgument = 1,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Convolve like `torch.nn.functional.conv_transpose2d`, then activate.

    Args:
        x: [N, C_in, H, W] or [C_in, H, W]; float32, bfloat16, float16 or float64, any layout.
        weight: [C_in, C_out / groups, kh, kw]; x's dtype, or any under autocast.
        bias: [C_out] or None.
        stride, padding, output_padding, dilation: an int or (vertical, horizontal).
        groups: of channels that see each other.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: leaky_relu's.

    Returns:
        [N, C_out, H_out, W_out] in channels_last if x or weight is, else contiguous.

    Raises:
        ValueError: the activation is not known.
        RuntimeError: torch's own, for shapes and dtypes that do not fit together.
        BackendError: the backend insisted on cannot serve the call.
    """
    if activation != "identity":
        check_activation(activation)
    made = plan(True, x, weight, bias, stride, padding, output_padding, dilation, groups)
    implementation = implementation_of(made, activation, x, weight, bias)
    if implementation == "reference":
        weight = regular(weight)
        y = F.conv_transpose2d(
            x, weight, bias, stride, padding, output_padding, groups, dilation,  # type: ignore[arg-type]
        )  # fmt: skip
        return activate_fresh(y, activation, negative_slope)
    if x.dim() == 3:
        batch = conv_transpose2d(
            x.unsqueeze(0), weight, bias, stride, padding, output_padding, groups, dilation,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return batch.squeeze(0)
    if implementation == "matmul":
        return activate(_stem(x, weight, bias, made.dtype), activation, negative_slope)
    folded = activation != "leaky_relu" or negative_slope >= 0
    y = dgrad(
        x.to(made.dtype),
        weight,
        bias,
        big_size=made.big_size,
        stride=made.stride,
        padding=made.padding,
        activation=activation if folded else "identity",
        negative_slope=negative_slope,
        implementation=implementation,
    )
    if not made.channels_last:
        y = like_twin(y, x, weight)
    return y if folded else activate(y, activation, negative_slope)


def _stem(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply the pixels by the flattened kernels, in the order in which the weight lies."""
    channels, kernel_h, kernel_w = weight.shape[1:]
    pixels, kernels = x.flatten(1), cast(weight, dtype)
    if suggests_channels_last(weight):
        kernels = kernels.permute(0, 2, 3, 1).flatten(1)
        y = torch.mm(pixels, kernels).view(-1, kernel_h, kernel_w, channels).permute(0, 3, 1, 2)
    else:
        y = torch.mm(pixels, kernels.flatten(1)).view(-1, channels, kernel_h, kernel_w)
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return like_twin(y, x, weight)
