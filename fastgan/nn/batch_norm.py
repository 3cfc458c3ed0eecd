"""Batch norm with its activation in the same pass: the twin of `torch.nn.BatchNorm2d`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastgan import ops
from fastgan.nn.epilogue import Epilogue
from fastgan.ops.activations import check_activation


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, optionally followed by an activation in the same pass.

    Args:
        num_features: C of the input [N, C, H, W].
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches.
        affine: whether there are a learned factor and offset a channel.
        track_running_stats: whether running statistics are kept.
        device: where parameters and buffers are made.
        dtype: the dtype of parameters and buffers.
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid", applied to the result.
        negative_slope: the factor of negative values, for leaky_relu.
        stat_groups: g: the batch is g equal contiguous slices, each normalised by statistics of
            its own; the running statistics advance once a slice, in order, as if the slices had
            been passed one after another.
        **kwargs: what newer versions of the twin take besides (`bias`).

    Raises:
        ValueError: if `activation` is not one of these, or `stat_groups` is not positive.
    """

    # On the class, so that a plain layer whose class is changed to this one needs nothing added.
    activation: str = "identity"
    negative_slope: float = 0.01
    stat_groups: int = 1
    own_attributes: ClassVar[tuple[str, ...]] = ("activation", "negative_slope", "stat_groups")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        stat_groups: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs
        )
        if stat_groups < 1:
            raise ValueError(f"stat_groups={stat_groups} is not allowed; it must be at least 1")
        check_activation(activation)
        self.activation = activation
        self.negative_slope = negative_slope
        self.stat_groups = stat_groups

    def forward(self, input: Tensor, *, epilogue: Epilogue | None = None) -> Tensor:
        """Normalise, scale and activate.

        Args:
            input: [N, C, H, W], any floating dtype, either memory format.
            epilogue: an activation for this call in place of the layer's own; `Sequential` hands
                over the activation that follows.

        Returns:
            [N, C, H, W], dtype and memory format of the input.
        """
        self._check_input_dim(input)
        updating = self.training and self.track_running_stats
        batch_statistics = self.training or self.running_mean is None
        groups = self.stat_groups if batch_statistics else 1
        if groups > 1 and updating and self.momentum is None:
            # A cumulative average has another momentum for every slice.
            if input.shape[0] % groups:
                raise ValueError(
                    f"stat_groups={groups} must divide the batch, which is {input.shape[0]}"
                )
            slices = input.chunk(groups)
            return torch.cat([self._normalise(part, epilogue, 1, updating) for part in slices])
        return self._normalise(input, epilogue, groups, updating)

    def _normalise(
        self, input: Tensor, epilogue: Epilogue | None, groups: int, updating: bool
    ) -> Tensor:
        activation, negative_slope = epilogue or (self.activation, self.negative_slope)
        momentum = 0.0 if self.momentum is None else self.momentum
        if updating and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(groups)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        return ops.batch_norm_act(
            **batch_norm_arguments(self, input),
            momentum=momentum,
            activation=activation,
            negative_slope=negative_slope,
            stat_groups=groups,
        )

    def extra_repr(self) -> str:
        """What `torch.nn.BatchNorm2d` says, and what goes beyond it."""
        text = super().extra_repr()
        if self.activation != "identity":
            text += f", activation={self.activation}"
        if self.stat_groups != 1:
            text += f", stat_groups={self.stat_groups}"
        return text


def batch_norm_arguments(layer: nn.BatchNorm2d, input: Tensor) -> dict[str, Any]:
    """Return what `layer` hands to `ops.batch_norm_act`, all but momentum and activation."""
    # Running statistics take part where they are updated, and where they normalise.
    running = layer.track_running_stats or not layer.training
    return {
        "x": input,
        "running_mean": layer.running_mean if running else None,
        "running_var": layer.running_var if running else None,
        "weight": layer.weight,
        "bias": layer.bias,
        "training": layer.training or (layer.running_mean is None and layer.running_var is None),
        "eps": layer.eps,
    }
