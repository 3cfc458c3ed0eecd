"""A normalised training batch out of uint8 images that lie on the device.

    batch[n] = mirror?(images[indices[n]]) / 127.5 − 1

One pass over the batch: gathering, mirroring and normalising images that are already decoded leaves
nothing for a data loader to do. Not differentiable: its input is bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.native_images import index_error
from fastgan.ops import native_cpu
from fastgan.ops.implementations import (
    Choice,
    Implementation,
    always,
    cached_choice,
    implementation_named,
    triton_prefers,
    triton_supports,
)
from fastgan.ops.library import register


class Call(NamedTuple):
    """The static properties of a call."""

    device: torch.device
    dtype: torch.dtype


def _reference(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    try:
        batch = images.index_select(0, indices).permute(0, 3, 1, 2)
    except (IndexError, RuntimeError):
        if indices.device.type == "cpu":
            _check_range(indices, images.shape[0])
        raise
    if flips is not None:
        batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
    wide = batch.to(torch.float32, memory_format=torch.channels_last)
    return wide.div_(127.5).sub_(1.0).to(dtype)


def _check_range(indices: Tensor, count: int) -> None:
    outside = ((indices < 0) | (indices >= count)).nonzero()
    if len(outside):
        raise index_error(indices, int(outside[0]), count)


def _triton(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    from fastgan.kernels import image_batch as kernels

    return kernels.gather(images, indices, flips, dtype)


IMPLEMENTATIONS = (
    native_cpu.IMAGE_BATCH,
    Implementation(
        "triton",
        lambda call: triton_supports(call.device, call.dtype),
        lambda call: triton_prefers(call.device),
        _triton,
    ),
    Implementation("reference", always, always, _reference),
)


def _run(images, indices, flips, dtype, implementation):
    return implementation_named(IMPLEMENTATIONS, implementation).run(images, indices, flips, dtype)


def _fake(images, indices, flips, dtype, implementation):
    batch = images.new_empty((indices.shape[0], *images.shape[1:]), dtype=dtype)
    return batch.permute(0, 3, 1, 2)


# For torch.compile; without a derivative to take, an eager call needs no dispatcher.
_operator = register(
    "image_batch(Tensor images, Tensor indices, Tensor? flips, ScalarType dtype, "
    "str implementation) -> Tensor",
    _run,
    _fake,
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
        indices: int64 [N] on the same device, each from 0 to count − 1.
        flips: bool [N], which images to mirror left and right; None for none.
        dtype: float32, bfloat16 or float16.

    Returns:
        [N, C, H, W] in [−1, 1], channels_last.

    Raises:
        ValueError: an argument has the wrong dtype or shape.
        IndexError: an index is out of range. Not on a GPU, so as not to wait for it.
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
    if implementation != "reference" and torch.compiler.is_compiling():
        return _operator(images, indices, flips, dtype, implementation)
    return _run(images, indices, flips, dtype, implementation)


def choice(images: Tensor, dtype: torch.dtype) -> Choice:
    """Return what would serve `image_batch` with these arguments."""
    return cached_choice("image_batch", IMPLEMENTATIONS, Call(images.device, dtype))
