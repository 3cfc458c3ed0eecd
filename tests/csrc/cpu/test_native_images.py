"""The batch of stored images at every level: torch's bits, mirrored pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_cases import DTYPES
from torch import Tensor

import fastgan
from fastgan import native_images
from fastgan.ops import image_batch as operator
from fastgan.ops.image_batch import image_batch

#: Around the bytes of a vector (4, 8, 16), where what is left over of a row begins and ends.
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 15, 16, 17, 21, 32, 33, 64, 70)


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def chosen(count: int, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices into `count` images and flips."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, count, (batch,), generator=generator)
    return indices, torch.rand(batch, generator=generator) < 0.5


def by_torch(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> Tensor:
    batch = images[indices].permute(0, 3, 1, 2)
    if flips is not None:
        batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
    return batch.float().div(127.5).sub(1.0).to(dtype)


def check(images: Tensor, indices: Tensor, flips: Tensor | None, dtype: torch.dtype) -> None:
    batch = native_images.gather(images, indices, flips, dtype)
    expected = by_torch(images, indices, flips, dtype)
    assert batch.dtype == dtype
    assert torch.equal(batch, expected)
    assert not batch.numel() or batch.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=500)
@given(
    height=st.integers(1, 9),
    width=st.sampled_from(WIDTHS),
    channels=st.sampled_from([1, 2, 3, 4, 5, 7, 15, 16, 17, 33]),
    batch=st.integers(0, 20),
    flipped=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
@example(height=2, width=3000, channels=3, batch=2, flipped=True, dtype=torch.float32, seed=0)
@example(height=1, width=7000, channels=1, batch=2, flipped=True, dtype=torch.bfloat16, seed=0)
@example(height=2, width=2000, channels=5, batch=2, flipped=True, dtype=torch.float16, seed=0)
@example(height=1, width=2, channels=9000, batch=2, flipped=True, dtype=torch.float32, seed=0)
@example(height=64, width=64, channels=3, batch=30, flipped=True, dtype=torch.float32, seed=0)
@example(height=64, width=64, channels=3, batch=30, flipped=False, dtype=torch.bfloat16, seed=0)
def test_batches_are_torch_s_to_the_bit(
    level, height, width, channels, batch, flipped, dtype, seed
) -> None:
    images = drawn(5, height, width, channels, seed=seed)
    indices, flips = chosen(5, batch, seed)
    check(images, indices, flips if flipped else None, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_byte_is_divided_and_rounded_as_by_torch(level, dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    check(images, torch.zeros(1, dtype=torch.int64), None, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_change_no_bit(level, dtype) -> None:
    images = drawn(40, 31, 33, 3)
    indices, flips = chosen(40, 150)  # several tasks, which end inside images
    expected = by_torch(images, indices, flips, dtype)
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        assert torch.equal(native_images.gather(images, indices, flips, dtype), expected)


@pytest.mark.parametrize("shape", [(0, 4, 6, 3), (5, 0, 6, 3), (5, 4, 0, 3), (5, 4, 6, 0)], ids=str)
def test_images_and_batches_may_be_empty(level, shape) -> None:
    indices, flips = chosen(max(shape[0], 1), 0 if shape[0] == 0 else 3)
    check(drawn(*shape), indices, flips, torch.float32)


def test_indices_and_flips_need_not_be_contiguous(level) -> None:
    indices, flips = chosen(5, 24)
    check(drawn(5, 4, 6, 3), indices[::3], flips[::3], torch.float32)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("outside", [-1, 5, 1 << 40, -(1 << 62)])
def test_an_index_out_of_range_is_named(extension, backend, outside) -> None:
    indices = torch.tensor([0, 4, outside, -7])
    with (
        fastgan.backend(backend),
        pytest.raises(IndexError, match=rf"indices\[2\] is {outside}, but allowed are 0 to 4"),
    ):
        image_batch(drawn(5, 4, 6, 3), indices)
    with fastgan.backend(backend), pytest.raises(IndexError, match="there are no images"):
        image_batch(drawn(0, 4, 6, 3), indices)


def test_nothing_is_written_where_an_index_is_out_of_range(level) -> None:
    batch = torch.empty(3, 4, 6, 3)
    run = torch.ops.fastgan_cpu.image_batch
    assert run(drawn(5, 4, 6, 3), torch.tensor([0, 1, 5]), None, batch) == 2
    assert batch.isnan().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": torch.zeros(5, 4, 6, 3)}, "images must be uint8"),
        ({"images": drawn(5, 6, 4, 3).transpose(1, 2)}, "images must be a contiguous"),
        ({"indices": torch.zeros(3, dtype=torch.int32)}, "indices must be int64"),
        ({"indices": torch.zeros(4, dtype=torch.int64)}, "batch has 3 images, not 4"),
        ({"flips": torch.zeros(4, dtype=torch.bool)}, "flips must be 3 bools"),
        ({"flips": torch.zeros(3)}, "flips must be 3 bools"),
        ({"batch": torch.zeros(3, 4, 5, 3)}, "dimension 2 of batch is 5, not 6"),
        ({"batch": torch.zeros(3, 4, 6, 3, dtype=torch.float64)}, "expected float32"),
    ],
)
def test_the_operator_keeps_inside_its_memory(extension, changes, named) -> None:
    arguments = {
        "images": drawn(5, 4, 6, 3),
        "indices": torch.zeros(3, dtype=torch.int64),
        "flips": None,
        "batch": torch.zeros(3, 4, 6, 3),
    }
    with pytest.raises(RuntimeError, match=named):
        torch.ops.fastgan_cpu.image_batch(**{**arguments, **changes})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_is_chosen_unasked(extension, dtype) -> None:
    vectors = extension.module.levels()[0] != "portable"
    expected = "cpu" if vectors else "reference"
    assert operator.choice(drawn(1, 1, 1, 1), dtype).chosen == expected


def test_compiled_graphs_take_the_kernel(extension) -> None:
    images, (indices, flips) = drawn(5, 4, 6, 3), chosen(5, 7)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda places: image_batch(images, places, flips, torch.bfloat16) + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    with fastgan.backend("cpu"):
        batch = compiled(indices)
    assert torch.equal(batch, by_torch(images, indices, flips, torch.bfloat16) + 1)
