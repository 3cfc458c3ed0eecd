"""The order of images: permutations, their stability, and batches as a function of the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgan.data import BatchIndices, permutation
from fastgan.errors import ConfigError, DataError

counts = st.integers(0, 300)
seeds = st.integers(-(2**70), 2**70)
epochs = st.integers(0, 2**40)


@given(counts, seeds, epochs)
def test_permutation_holds_every_index_once(count: int, seed: int, epoch: int) -> None:
    order = permutation(count, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))


@given(st.integers(50, 300), seeds, epochs)
def test_permutation_is_a_function_that_differs_by_seed_and_epoch(
    count: int, seed: int, epoch: int
) -> None:
    order = permutation(count, seed, epoch)
    assert np.array_equal(order, permutation(count, seed, epoch))
    assert not np.array_equal(order, permutation(count, seed + 1, epoch))
    assert not np.array_equal(order, permutation(count, seed, epoch + 1))


def test_permutation_is_the_one_of_every_earlier_release() -> None:
    # Written down once: a changed order would break the resuming of every existing run.
    assert permutation(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, seed=7, epoch=3).tolist() == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


def test_permutation_puts_every_image_everywhere_equally_often() -> None:
    epochs_seen = 4000
    places = np.stack([permutation(8, 1, epoch) for epoch in range(epochs_seen)])
    share = np.stack([(places == image).mean(axis=0) for image in range(8)])
    deviation = np.sqrt(1 / 8 * 7 / 8 / epochs_seen)
    assert np.abs(share - 1 / 8).max() < 5 * deviation


@given(st.integers(1, 60), st.integers(1, 60), seeds, st.integers(0, 500))
def test_batches_can_be_resumed_at_any_step(
    count: int, batch_size: int, seed: int, step: int
) -> None:
    batch_size = min(count, batch_size)
    walked = BatchIndices(count, batch_size, seed)
    for earlier in range(max(0, step - 3), step):
        walked.indices(earlier)
    resumed = BatchIndices(count, batch_size, seed)
    assert np.array_equal(walked.indices(step), resumed.indices(step))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5))
def test_an_epoch_shows_no_image_twice(count: int, batch_size: int, epoch: int) -> None:
    batch_size = min(count, batch_size)
    order = BatchIndices(count, batch_size, seed=3)
    first = epoch * order.batches_per_epoch
    seen = np.concatenate([order.indices(first + k) for k in range(order.batches_per_epoch)])
    assert len(seen) == count // batch_size * batch_size
    assert len(set(seen.tolist())) == len(seen)
    assert seen.tolist() == permutation(count, 3, epoch)[: len(seen)].tolist()


def test_a_batch_may_be_changed_without_changing_the_order() -> None:
    order = BatchIndices(10, 5, seed=0)
    before = order.indices(0)
    order.indices(0)[:] = 0
    assert np.array_equal(order.indices(0), before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: permutation(-1, 0, 0), ConfigError, "count is -1"),
        (lambda: permutation(1, 0, -1), ConfigError, "epoch is -1"),
        (lambda: BatchIndices(10, 0, 0), ConfigError, "batch_size is 0"),
        (lambda: BatchIndices(10, 11, 0), DataError, "only 10 images"),
        (lambda: BatchIndices(0, 1, 0), DataError, "only 0 images"),
        (lambda: BatchIndices(10, 5, 0).indices(-1), ConfigError, "step is -1"),
    ],
)
def test_impossible_orders_are_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
