"""Batches in the order of training, the next one fetched while the step runs.

Which images make a batch is a function of the step alone (`fastgan.data.BatchIndices`), so a
resumed run reads on where it stopped. Reading a memory map may wait for the disk: one thread stays
one batch ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fastgan.data import BatchIndices, PackedImages
from fastgan.training.config import TrainConfig


class Batches:
    """The uint8 images of every step: [D steps * batch, C, H, W], channels_last strides.

    Raises `DataError` where the batch is larger than the data set.
    """

    def __init__(self, data: PackedImages, config: TrainConfig, device: torch.device) -> None:
        self.data = data
        self.order = BatchIndices(len(data), config.batch_size, config.seed)
        self.parts = config.discriminator_steps
        self.pinned = device.type == "cuda"

    def of_step(self, step: int) -> Tensor:
        """The images that `step` (from 0) trains on, read now."""
        first = step * self.parts
        indices = [self.order.indices(first + part) for part in range(self.parts)]
        batch = self.data.batch(np.concatenate(indices))
        return batch.pin_memory() if self.pinned else batch

    @contextmanager
    def ahead(self, step: int, end: int) -> Iterator[Iterator[Tensor]]:
        """Within: the images of the steps from `step` up to `end`, each read one step ahead."""
        with ThreadPoolExecutor(1, thread_name_prefix="fastgan-batches") as reader:

            def read() -> Iterator[Tensor]:
                coming: Future[Tensor] = reader.submit(self.of_step, step)
                for following in range(step + 1, end + 1):
                    batch = coming.result()
                    if following < end:
                        coming = reader.submit(self.of_step, following)
                    yield batch

            yield read()
