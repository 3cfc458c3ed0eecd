"""Convolution layers on fastgan's operators: the twins of `torch.nn.Conv2d` and its transpose."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan import ops
from fastgan.nn.epilogue import Epilogue
from fastgan.ops.activations import check_activation

IntOrPair = int | tuple[int, int]
# What both layers read and their torch.nn twins do not have.
_OWN_ATTRIBUTES = ("activation", "negative_slope")


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, optionally followed by an activation in the same pass.

    The arguments are those of the twin, and two more by keyword:

    Args:
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid", applied to the result.
        negative_slope: the factor of negative values, for leaky_relu.

    Raises:
        ValueError: if `activation` is not one of these, and as the twin does.
    """

    # On the class, so that a plain layer whose class is changed to this one needs nothing added.
    activation: str = "identity"
    negative_slope: float = 0.01
    own_attributes: ClassVar[tuple[str, ...]] = _OWN_ATTRIBUTES

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        check_activation(activation)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, *, epilogue: Epilogue | None = None) -> Tensor:
        """Convolve and activate.

        Args:
            input: [N, C_in, H, W] or [C_in, H, W].
            epilogue: an activation for this call in place of the layer's own; `Sequential` hands
                over the activation that follows.

        Returns:
            [N, C_out, H_out, W_out], or without N as the input.
        """
        activation, negative_slope = epilogue or (self.activation, self.negative_slope)
        return ops.conv2d(
            **conv2d_arguments(self, input), activation=activation, negative_slope=negative_slope
        )

    def extra_repr(self) -> str:
        """What the twin says, and the activation if there is one."""
        return super().extra_repr() + _activation_repr(self.activation)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, optionally followed by an activation in the same pass.

    The arguments are those of the twin, and two more by keyword:

    Args:
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid", applied to the result.
        negative_slope: the factor of negative values, for leaky_relu.

    Raises:
        ValueError: if `activation` is not one of these, and as the twin does.
    """

    activation: str = "identity"
    negative_slope: float = 0.01
    own_attributes: ClassVar[tuple[str, ...]] = _OWN_ATTRIBUTES

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrPair = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        check_activation(activation)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(
        self,
        input: Tensor,
        output_size: list[int] | None = None,
        *,
        epilogue: Epilogue | None = None,
    ) -> Tensor:
        """Convolve, transposed, and activate.

        Args:
            input: [N, C_in, H, W] or [C_in, H, W].
            output_size: the wanted (H_out, W_out), where the stride leaves a choice; in place of
                the layer's output_padding.
            epilogue: an activation for this call in place of the layer's own; `Sequential` hands
                over the activation that follows.

        Returns:
            [N, C_out, H_out, W_out], or without N as the input.

        Raises:
            ValueError: if no output_padding gives `output_size`.
        """
        activation, negative_slope = epilogue or (self.activation, self.negative_slope)
        return ops.conv_transpose2d(
            **conv_transpose2d_arguments(self, input, output_size),
            activation=activation,
            negative_slope=negative_slope,
        )

    def extra_repr(self) -> str:
        """What the twin says, and the activation if there is one."""
        return super().extra_repr() + _activation_repr(self.activation)


def conv2d_arguments(layer: nn.Conv2d, input: Tensor) -> dict[str, Any]:
    """Return what `layer` hands to `ops.conv2d` for `input`, all but the activation."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        input = F.pad(input, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0, 0)
    return {
        "x": input,
        "weight": layer.weight,
        "bias": layer.bias,
        "stride": layer.stride,
        "padding": padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }


def conv_transpose2d_arguments(
    layer: nn.ConvTranspose2d, input: Tensor, output_size: list[int] | None = None
) -> dict[str, Any]:
    """Return what `layer` hands to `ops.conv_transpose2d`, all but the activation."""
    output_padding: Any = layer.output_padding
    if output_size is not None:
        geometry: list[Any] = [layer.stride, layer.padding, layer.kernel_size, 2, layer.dilation]
        output_padding = layer._output_padding(input, output_size, *geometry)
    return {
        "x": input,
        "weight": layer.weight,
        "bias": layer.bias,
        "stride": layer.stride,
        "padding": layer.padding,
        "output_padding": output_padding,
        "groups": layer.groups,
        "dilation": layer.dilation,
    }


def _activation_repr(activation: str) -> str:
    return "" if activation == "identity" else f", activation={activation}"
