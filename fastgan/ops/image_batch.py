"""A normalised training batch out of uint8 images that lie on the device.

    batch[n] = mirror?(images[indices[n]]) / 127.5 − 1

One pass over the batch: gathering, mirroring and normalising images that are already decoded leaves
nothing for a data loader to do. Not differentiable: its input is bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    cached_choice,
    implementation_named,
    triton_prefers,
    triton_supports,
)


class Call(NamedTuple):
    """The static properties of a call."""

    device: torch.device
    dtype: torch.dtype


def _reference(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    batch = images.index_select(0, indices).permute(0, 3, 1, 2)
    if flips is not None:
        batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
    wide = batch.to(torch.float32, memory_format=torch.channels_last)
    return wide.div_(127.5).sub_(1.0).to(dtype)


def _triton(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    from fastgan.kernels import image_batch as kernels

    return kernels.gather(images, indices, flips, dtype)


IMPLEMENTATIONS = (
    Implementation(
        "triton",
        lambda call: triton_supports(call.device, call.dtype),
        lambda call: triton_prefers(call.device),
        _triton,
    ),
    Implementation("reference", always, always, _reference),
)


def image_batch(
    images: Tensor,
    indices: Tensor,
    flips: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Gather, mirror and normalise.

    Args:
        images: uint8 [count, H, W, C], dense: the whole data set, or a staged batch.
        indices: int64 [N] on the same device, each from 0 to count − 1 (not checked on a GPU, so
            as not to wait for it).
        flips: bool [N], which images to mirror left and right; None for none.
        dtype: float32, bfloat16 or float16.

    Returns:
        [N, C, H, W] in [−1, 1], channels_last.

    Raises:
        ValueError: an argument has the wrong dtype or shape.
        BackendError: the backend insisted on cannot serve the call.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(
            f"images must be dense uint8 [count, H, W, C], not {images.dtype} of shape "
            f"{list(images.shape)} and strides {list(images.stride())}"
        )
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(
            f"indices must be int64 [N], not {indices.dtype} of shape {list(indices.shape)}"
        )
    if flips is not None and (flips.dtype != torch.bool or flips.shape != indices.shape):
        raise ValueError(
            f"flips must be bool {list(indices.shape)} like indices, not {flips.dtype} of shape "
            f"{list(flips.shape)}"
        )
    implementation = choice(images, dtype).chosen
    return implementation_named(IMPLEMENTATIONS, implementation).run(images, indices, flips, dtype)


def choice(images: Tensor, dtype: torch.dtype) -> Choice:
    """Return what would serve `image_batch` with these arguments."""
    return cached_choice("image_batch", IMPLEMENTATIONS, Call(images.device, dtype))
