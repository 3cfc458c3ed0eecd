"""From resident uint8 images to a normalised training batch in one launch.

Where the whole data set lies on the device as uint8, NHWC, a batch is a gather: one kernel reads
each chosen image once, mirrors it where asked, maps 0…255 to −1…1 and writes the training dtype.

Tile picture: one program makes BLOCK consecutive values of one image of the batch, in NHWC order:

    batch[n, h, w, c] = images[indices[n], h, flip[n] ? W − 1 − w : w, c] / 127.5 − 1
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.compilation import KernelVariant

BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _image_batch_kernel(
    images,  # uint8 [count, H, W, C], dense
    indices,  # int64 [N], each in [0, count)
    flips,  # bool [N]: mirror left and right; or None
    batch,  # [N, H, W, C], dense
    values,  # H·W·C, the values of one image
    W: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid (blocks of one image, N); the last block of an image is masked.
    sample = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < values
    source = offset
    if flips is not None and tl.load(flips + sample):
        column = (offset // C) % W
        source = offset + (W - 1 - 2 * column) * C
    image = images + tl.load(indices + sample).to(tl.int64) * values
    pixel = tl.load(image + source, mask=inside, other=0).to(tl.float32)
    # True division, as the reference: x · (1 / 127.5) would differ in the last bit.
    value = tl.div_rn(pixel, 127.5) - 1.0
    tl.store(batch + sample * values + offset, value.to(batch.dtype.element_ty), mask=inside)


def gather(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A batch of the resident images.

    Args:
        images: uint8 [count, H, W, C], dense.
        indices: int64 [N], each in [0, count); not checked, so as not to synchronise.
        flips: bool [N], which samples to mirror left and right, or None for none.
        dtype: float32, bfloat16 or float16 of the result.

    Returns:
        [N, C, H, W] in [−1, 1], channels_last.
    """
    _, height, width, channels = images.shape
    count = indices.numel()
    batch = torch.empty((count, height, width, channels), dtype=dtype, device=images.device)
    values = height * width * channels
    if batch.numel():
        _image_batch_kernel[(triton.cdiv(values, BLOCK), count)](
            images, indices, flips, batch, values, width, channels, BLOCK, num_warps=NUM_WARPS
        )
    return batch.permute(0, 3, 1, 2)


def variants(architecture: str) -> Iterator[KernelVariant]:
    """The specializations of a DCGAN on 64×64×3 images, with and without flips."""
    for flips in (True, False):
        pointers = {"images": "*u8", "indices": "*i64", "batch": "*bf16", "values": "i32:16"}
        constants: dict[str, object] = {"W": 64, "C": 3, "BLOCK": BLOCK}
        if flips:
            pointers["flips"] = "*i1"
        else:
            constants["flips"] = None
        yield KernelVariant(
            kernel=_image_batch_kernel,
            name=f"image_batch[{'flip' if flips else 'plain'}, bf16]",
            signature=pointers,
            constants=constants,
            num_warps=NUM_WARPS,
            num_stages=1,
            architectures=(architecture,),
        )
