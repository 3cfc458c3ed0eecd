"""The order in which images are seen: a counter-based function of (seed, epoch).

No generator state is carried from step to step, so nothing has to be saved to resume at any
position, and every process of a distributed run computes the same order for itself.
"""

from __future__ import annotations

import numpy as np

from fastgan.errors import ConfigError, DataError

_WORD = (1 << 64) - 1


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)` that depends on nothing but its arguments.

    The raw 64-bit draws of the Philox generator (Salmon et al., "Parallel random numbers: as easy
    as 1, 2, 3", 2011) keyed by (seed, epoch), sorted: numpy promises the raw stream for ever,
    while the shuffling methods built on it may change from version to version.

    Args:
        count: number of images, at least 0.
        seed: any integer; it is taken modulo 2**64.
        epoch: which pass over the data, at least 0.

    Returns:
        int64 [count].

    Raises:
        ConfigError: count or epoch is negative.
    """
    if count < 0:
        raise ConfigError(f"count is {count}, but a permutation needs at least 0 elements")
    if epoch < 0:
        raise ConfigError(f"epoch is {epoch}, but epochs count from 0")
    key = np.array([seed & _WORD, epoch & _WORD], dtype=np.uint64)
    draws = np.random.Philox(key=key).random_raw(count)
    # Stable, so that equal draws (once in 2**64 pairs) keep one order on every machine.
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


class BatchIndices:
    """Which images make up the batch of a step: a pure function of the step.

    Every epoch is a fresh permutation cut into whole batches; the remainder of fewer than
    `batch_size` images is left out of that epoch (another one each time).

    Args:
        count: number of images in the data set.
        batch_size: images a batch, from 1 to `count`.
        seed: seed of the order; see `permutation`.

    Raises:
        ConfigError: batch_size is less than 1.
        DataError: batch_size is larger than the data set.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, but must be at least 1")
        if batch_size > count:
            raise DataError(
                f"batch_size is {batch_size}, but the data set has only {count} "
                f"image{'' if count == 1 else 's'}: choose a batch size of at most {count}"
            )
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = count // batch_size
        self._current: tuple[int, np.ndarray] = (0, permutation(count, seed, 0))

    def indices(self, step: int) -> np.ndarray:
        """The images of the batch that step number `step` (from 0) trains on: int64 [batch_size].

        Raises:
            ConfigError: step is negative.
        """
        if step < 0:
            raise ConfigError(f"step is {step}, but steps count from 0")
        epoch, position = divmod(step, self.batches_per_epoch)
        held, order = self._current
        if held != epoch:
            order = permutation(self.count, self.seed, epoch)
            # One assignment of one tuple: safe where a prefetching thread shares this object.
            self._current = (epoch, order)
        return order[position * self.batch_size : (position + 1) * self.batch_size].copy()
