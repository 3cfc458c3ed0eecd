"""The shim tells right kernels from wrong ones: only then do its verdicts on others count."""

from __future__ import annotations

from ctypes import c_int64

import pytest
import torch
from simt_library import LaunchError, Library, pointer


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 96), (2, 256)])
def test_a_barrier_makes_shared_memory_safe(
    simt: Library, blocks: int, threads: int, seed: int
) -> None:
    simt.seed(seed)
    values = simt.copy(torch.randn(blocks, threads))
    out = simt.empty((blocks, threads))
    simt.run("reverse", pointer(values), pointer(out), blocks, threads, True)
    assert torch.equal(out, values.flip(1))


@pytest.mark.parametrize("seed", range(5))
def test_a_missing_barrier_shows_as_nan(simt: Library, seed: int) -> None:
    simt.seed(seed)
    values = simt.copy(torch.randn(1, 64))
    out = simt.empty((1, 64))
    simt.run("reverse", pointer(values), pointer(out), 1, 64, False)
    assert out.isnan().any()


def test_shuffles_stay_in_the_warp(simt: Library) -> None:
    values = simt.copy(torch.arange(96, dtype=torch.float32))
    out = simt.empty((96,))
    simt.run("warp_sum", pointer(values), pointer(out), 96)
    assert torch.equal(out.view(3, 32), values.view(3, 32).sum(1, keepdim=True).expand(3, 32))


def test_a_barrier_that_some_threads_never_reach_is_an_error(simt: Library) -> None:
    with pytest.raises(LaunchError, match=r"of 8, 4 at __syncthreads.*4 are done"):
        simt.run("divergent", 8)


def test_a_shuffle_without_the_whole_mask_is_an_error(simt: Library) -> None:
    values, out = simt.empty((20,)), simt.empty((20,))
    with pytest.raises(LaunchError, match="20 for their warp"):
        simt.run("warp_sum", pointer(values), pointer(out), 20)


def test_writing_beyond_shared_memory_is_an_error(simt: Library) -> None:
    with pytest.raises(LaunchError, match="beyond its shared memory"):
        simt.run("beyond_shared", 32)


@pytest.mark.parametrize(("source", "target"), [(1, 0), (0, 1), (900, 0), (0, -1500)])
def test_touching_memory_outside_of_a_buffer_is_an_error(
    simt: Library, source: int, target: int
) -> None:
    values, out = simt.empty((32,)), simt.empty((32,))
    with pytest.raises(LaunchError, match="outside of its buffers"):
        simt.run("shift", pointer(values), pointer(out), 32, c_int64(source), c_int64(target))


def test_writing_just_before_a_buffer_is_an_error(simt: Library) -> None:
    values, out = simt.copy(torch.zeros(32)), simt.empty((32,))
    simt.run("shift", pointer(values), pointer(out), 32, c_int64(0), c_int64(-1))
    with pytest.raises(LaunchError, match="before the beginning"):
        simt.release()


def test_the_shim_works_on_after_a_failure(simt: Library) -> None:
    with pytest.raises(LaunchError):
        simt.run("divergent", 64)
    values, out = simt.copy(torch.randn(2, 64)), simt.empty((2, 64))
    simt.run("reverse", pointer(values), pointer(out), 2, 64, True)
    assert torch.equal(out, values.flip(1))
