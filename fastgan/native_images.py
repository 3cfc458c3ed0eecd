"""The launcher of the native CPU kernel that makes a batch out of stored images.

The twin of the Triton launcher in fastgan.kernels.image_batch; `fastgan.native_kernels.usable()`
says whether it can be called. Results are bit-identical for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.native_kernels import operators


def gather(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A batch of the stored images.

    Args:
        images: uint8 [count, H, W, C], dense.
        indices: int64 [N], each from 0 to count - 1.
        flips: bool [N], which images to mirror left and right, or None for none.
        dtype: float32, bfloat16 or float16 of the result.

    Returns:
        [N, C, H, W] in [-1, 1], channels_last.

    Raises:
        IndexError: an index is out of range.
        RuntimeError: the kernels are not loaded, or an argument does not fit (it is named).
    """
    run = operators().image_batch.default
    if flips is not None:
        flips = flips.contiguous()
    batch = torch.empty((indices.numel(), *images.shape[1:]), dtype=dtype)
    outside = run(images, indices.contiguous(), flips, batch)
    if outside >= 0:
        raise index_error(indices, outside, images.shape[0])
    return batch.permute(0, 3, 1, 2)


def index_error(indices: Tensor, place: int, count: int) -> IndexError:
    """Return the error that names indices[place], which none of `count` images has."""
    allowed = f"0 to {count - 1}" if count else "none, as there are no images"
    return IndexError(f"indices[{place}] is {int(indices[place])}, but allowed are {allowed}")
