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

# The share of a GPU's free memory that a resident data set may take.
RESIDENT_SHARE = 0.5


def _has_room(device: torch.device, size: int) -> bool:
    """Whether a GPU can hold `size` bytes of images; a CPU has them in its memory map already."""
    if device.type != "cuda":
        return False
    return size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


class Batches:
    """What every step trains on.

    `resident` is the whole data set on the device, uint8 [count, H, W, C], where it is placed
    there ("auto" does so on a GPU that has room); then a step's batch is its indices, int64
    [D steps * batch]. Else it is the images, uint8 [D steps * batch, C, H, W], channels_last.
    `placement` says which, in a word.

    Raises `DataError` where the batch is larger than the data set.
    """

    def __init__(self, data: PackedImages, config: TrainConfig, device: torch.device) -> None:
        self.data = data
        self.order = BatchIndices(len(data), config.batch_size, config.seed)
        self.parts = config.discriminator_steps
        self.pinned = device.type == "cuda"
        self.resident: Tensor | None = None
        if config.data_placement == "resident" or (
            config.data_placement == "auto" and _has_room(device, data.pixels.nbytes)
        ):
            self.resident = data.resident(device).permute(0, 2, 3, 1)
        self.placement = "prefetched" if self.resident is None else "resident"

    def of_step(self, step: int) -> Tensor:
        """The images that `step` (from 0) trains on, read now, or their indices."""
        first = step * self.parts
        indices = np.concatenate([self.order.indices(first + i) for i in range(self.parts)])
        resident = self.resident is not None
        batch = torch.from_numpy(indices) if resident else self.data.batch(indices)
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
