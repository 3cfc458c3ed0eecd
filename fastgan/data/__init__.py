"""Images in, batches out: any source is decoded once into a packed file and mapped from there.

    images = open_images("photos/", image_size=64)
    order = BatchIndices(len(images), batch_size=64, seed=0)
    real = normalise(images.batch(order.indices(step)), device)

Training never decodes, so it never waits for a data loader; and because the order is a pure
function of the step, a run resumes at any position.
"""

from __future__ import annotations

from fastgan.data.opening import open_images
from fastgan.data.packed import PackedImages, normalise
from fastgan.data.shuffling import BatchIndices, permutation

__all__ = ["BatchIndices", "PackedImages", "normalise", "open_images", "permutation"]
