"""Packing weights in CUDA: every element where it belongs, rounded as torch rounds."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import DTYPES, Library, pointer
from torch import Tensor


class WeightToPack(ctypes.Structure):
    """csrc/cuda/kernels.h: WeightToPack."""

    _fields_ = (
        ("source", c_void_p),
        ("target", c_void_p),
        *((name, c_int) for name in ("small", "big", "kernel_height", "kernel_width")),
        ("strides", c_int64 * 4),
    )


#: How a weight may lie in memory: the order of its dimensions, outermost first.
LAYOUTS = ((0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0))

WEIGHTS = st.tuples(
    st.integers(1, 5), st.integers(1, 80), st.integers(1, 5), st.integers(1, 5),
    st.sampled_from(LAYOUTS),
)  # fmt: skip


def run(simt: Library, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the packed copies as logical [S, B, kh, kw]."""
    records = (WeightToPack * len(weights))()
    targets = []
    for record, weight in zip(records, weights, strict=True):
        small, big, height, width = weight.shape
        target = simt.empty((small, height, width, big), dtype)
        targets.append(target.permute(0, 3, 1, 2))
        sizes, strides = tuple(weight.shape), (c_int64 * 4)(*weight.stride())
        record.__init__(pointer(weight), pointer(target), *sizes, strides)
    simt.run("pack_weights", DTYPES[dtype], records, len(weights))
    return targets


def check(
    simt: Library, shapes: list[tuple], dtype: torch.dtype, seed: int, order: int = 0
) -> None:
    simt.seed(order)
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for *shape, layout in shapes:
        dense = simt.copy(torch.randn([shape[i] for i in layout], generator=generator))
        weights.append(dense.permute([layout.index(i) for i in range(4)]))
    for packed, weight in zip(run(simt, weights, dtype), weights, strict=True):
        assert torch.equal(packed, weight.to(dtype))


@settings(max_examples=120)
@given(
    shapes=st.lists(WEIGHTS, min_size=1, max_size=4),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 2**32),
)
def test_packing_moves_and_rounds_every_element(
    shim_library: Library, shapes: list[tuple], dtype: torch.dtype, seed: int
) -> None:
    check(shim_library, shapes, dtype, seed)
    shim_library.release()


@pytest.mark.parametrize("count", [0, 1, 48, 49, 100])
def test_any_number_of_weights(simt: Library, count: int) -> None:
    check(simt, [(2, 3, 2, 2, LAYOUTS[0])] * count, torch.bfloat16, 3)


def test_a_weight_without_elements_is_passed_over(simt: Library) -> None:
    shapes = [(2, 3, 2, 2, LAYOUTS[0]), (0, 3, 2, 2, LAYOUTS[0]), (1, 70, 1, 1, LAYOUTS[0])]
    check(simt, shapes, torch.float16, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_with_infinities_and_nan(
    simt: Library, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (4096,), generator=generator, dtype=torch.int64)
    ties = torch.arange(0x3F800000, 0x3F820000, 0x1000)
    values = torch.cat([bits, ties]).to(torch.int32).view(torch.float32)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65520.0, 1e-8])
    weight = simt.copy(torch.cat([values, special]).view(1, -1, 1, 1))
    (packed,) = run(simt, [weight], dtype)
    torch.testing.assert_close(packed, weight.to(dtype), rtol=0, atol=0, equal_nan=True)
