"""Two-dimensional convolution with an activation in its epilogue: the twin of `F.conv2d`.

    y[n, S, i] = act(bias[S] + sum over B, k of w[S, B, k] x[n, B, i s - p + k d])

Forward is `convolution.fprop`; its derivatives, to any order, are dgrad, wgrad and fprop again. A
kernel that covers the whole unpadded image (a DCGAN discriminator's head) is a matrix product and
computed as one. Groups and dilation other than 1 are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.ops.activations import activate, activate_fresh, check_activation
from fastgan.ops.convolution import like_twin, regular
from fastgan.ops.convolution_autograd import fprop
from fastgan.ops.convolution_plan import PairArgument, implementation_of, plan
from fastgan.ops.packing import cast


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: PairArgument = 1,
    padding: PairArgument | str = 0,
    dilation: PairArgument = 1,
    groups: int = 1,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Convolve like `torch.nn.functional.conv2d`, then activate.

    Args:
        x: [N, C_in, H, W] or [C_in, H, W]; float32, bfloat16, float16 or float64, any layout.
        weight: [C_out, C_in / groups, kh, kw]; x's dtype, or any under autocast.
        bias: [C_out] or None.
        stride, padding, dilation: an int or (vertical, horizontal); padding also "valid", "same".
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
    made = plan(False, x, weight, bias, stride, padding, 0, dilation, groups)
    implementation = implementation_of(made, activation, x, weight, bias)
    if implementation == "reference":
        weight = regular(weight)
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
        return activate_fresh(y, activation, negative_slope)
    if x.dim() == 3:
        batch = conv2d(
            x.unsqueeze(0), weight, bias, stride, padding, dilation, groups,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        return batch.squeeze(0)
    if implementation == "matmul":
        return activate(_head(x, weight, bias, made.dtype), activation, negative_slope)
    folded = activation != "leaky_relu" or negative_slope >= 0
    y = fprop(
        x.to(made.dtype),
        weight,
        bias,
        stride=made.stride,
        padding=made.padding,
        activation=activation if folded else "identity",
        negative_slope=negative_slope,
        implementation=implementation,
    )
    if not made.channels_last:
        y = like_twin(y, x, weight)
    return y if folded else activate(y, activation, negative_slope)


def _head(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply the flattened images by the flattened kernels, in the order in which x lies."""
    kernels = cast(weight, dtype)
    if x.is_contiguous(memory_format=torch.channels_last):
        kernels = kernels.permute(0, 2, 3, 1).flatten(1)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), kernels, bias)
    else:
        y = F.linear(x.flatten(1), kernels.flatten(1), bias)
    return like_twin(y[:, :, None, None], x, weight)
