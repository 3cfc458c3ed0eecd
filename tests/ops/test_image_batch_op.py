"""image_batch: both implementations give the same bits, and wrong arguments are named."""

from __future__ import annotations

import pytest
import torch

import fastgan
from fastgan.ops.image_batch import image_batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_implementations_agree_to_the_bit(device, dtype, flipped, rng):
    images = torch.randint(0, 256, (9, 6, 5, 3), dtype=torch.uint8, generator=rng).to(device)
    indices = torch.randint(0, 9, (7,), generator=rng).to(device)
    flips = (torch.rand(7, generator=rng) < 0.5).to(device) if flipped else None
    batches = {}
    for name in ("reference", "triton"):
        with fastgan.backend(name):
            batches[name] = image_batch(images, indices, flips, dtype)
    assert torch.equal(batches["reference"], batches["triton"])
    assert batches["reference"].stride() == batches["triton"].stride()
    first = images[indices[0]].permute(2, 0, 1).float() / 127.5 - 1
    if flips is not None and flips[0]:
        first = first.flip(2)
    assert torch.equal(batches["reference"][0], first.to(dtype))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": torch.zeros(2, 4, 4, 3)}, "images"),
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8).permute(0, 2, 3, 1)}, "images"),
        ({"indices": torch.zeros(2, dtype=torch.int32)}, "indices"),
        ({"flips": torch.zeros(3, dtype=torch.bool)}, "flips"),
    ],
)
def test_wrong_arguments_are_named(changes, named):
    arguments = {
        "images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
        "indices": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=named):
        image_batch(**{**arguments, **changes})
