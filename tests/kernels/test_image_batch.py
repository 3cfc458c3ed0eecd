"""The batch gather against plain torch indexing, to the bit."""

from __future__ import annotations

import pytest
import torch

from fastgan.kernels import image_batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 1, 1, 1), (7, 8, 6, 3), (3, 17, 13, 4), (4, 28, 28, 1)])
@pytest.mark.parametrize("with_flips", [True, False])
def test_gather_equals_indexing_flipping_and_normalising(shape, dtype, with_flips, rng):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    indices = torch.randint(0, shape[0], (6,), generator=rng)
    flips = torch.rand(6, generator=rng) < 0.5 if with_flips else None
    batch = image_batch.gather(images, indices, flips, dtype)

    expected = images[indices].permute(0, 3, 1, 2).float() / 127.5 - 1
    if flips is not None:
        expected = torch.where(flips[:, None, None, None], expected.flip(3), expected)
    assert torch.equal(batch, expected.to(dtype))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_an_empty_batch_has_the_shape_of_its_images():
    images = torch.zeros(3, 4, 6, 3, dtype=torch.uint8)
    batch = image_batch.gather(images, torch.empty(0, dtype=torch.int64), None, torch.float32)
    assert batch.shape == (0, 3, 4, 6)
