"""torch's fused Adam, told to leave the layout of weights alone.

On a CPU the fused kernel copies what is not contiguous, which in channels_last is every weight of a
convolution: twice the time of an update, and a tensor of the largest weight's size (PyTorch 2.13).
Worse, it takes a gradient whose strides are not the weight's for one whose strides are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ChannelsLastAdam(torch.optim.Adam):
    """`torch.optim.Adam(fused=True)` for weights in channels_last, the same to the bit.

    Its state, checkpoints and hooks are those of torch's.
    """

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        *moments_and_steps: list[Tensor],
    ) -> bool:
        has_complex = super()._init_group(group, params, grads, *moments_and_steps)
        for index, (weight, grad) in enumerate(zip(params, grads, strict=True)):
            if grad.stride() != weight.stride():
                grads[index] = torch.empty_like(weight).copy_(grad)
        for tensors in (params, grads, *moments_and_steps):
            tensors[:] = [_contiguous_view(tensor) for tensor in tensors]
        return has_complex


def _contiguous_view(tensor: Tensor) -> Tensor:
    channels_last = tensor.dim() == 4 and not tensor.is_contiguous()
    return tensor.permute(0, 2, 3, 1) if channels_last else tensor
