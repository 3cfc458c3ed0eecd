"""The interpreter that stands in for a GPU rounds as a GPU does."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _copy_kernel(source, target, COUNT: tl.constexpr):
    offset = tl.arange(0, COUNT)
    tl.store(target + offset, tl.load(source + offset).to(target.dtype.element_ty))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU runs the kernels")
def test_float32_is_rounded_to_the_nearest_bfloat16_and_back(rng):
    values = torch.cat(
        [
            torch.randn(500, generator=rng) * 10 ** torch.randint(-40, 38, (500,), generator=rng),
            torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 3.4e38, 1e-45, 257.0, 259.0]),
            torch.zeros(4),
        ]
    )
    narrow = torch.empty(512, dtype=torch.bfloat16)
    _copy_kernel[(1,)](values, narrow, 512)
    assert torch.equal(narrow, values.to(torch.bfloat16))
    wide = torch.empty(512)
    _copy_kernel[(1,)](narrow, wide, 512)
    assert torch.equal(wide, narrow.float())
