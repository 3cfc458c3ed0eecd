"""Scalars of the last steps, kept on the device until someone reads them.

A step writes one row; the host reads the rows of an interval at once, so that logging costs one
synchronisation an interval. Writing works in place on static memory and can be captured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MetricRing:
    """A ring of rows of float32 scalars on a device.

    Args:
        names: what the columns are called.
        capacity: rows kept; the newest overwrite the oldest.
        device: where the ring lives.
    """

    def __init__(
        self, names: Sequence[str], capacity: int, device: torch.device | str = "cpu"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.names = tuple(names)
        self.capacity = capacity
        self.rows = torch.full((capacity, len(self.names)), float("nan"), device=device)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def write(self, scalars: Sequence[Tensor]) -> None:
        """Add a row of 0-d tensors, in the order of `names`; does not synchronise."""
        row = torch.stack([scalar.detach().float() for scalar in scalars])
        self.rows.index_copy_(0, self.slot, row[None])
        self.slot.add_(1).remainder_(self.capacity)

    def latest(self) -> dict[str, Tensor]:
        """The newest row, still on the device."""
        row = self.rows.index_select(0, (self.slot - 1).remainder(self.capacity))[0]
        return dict(zip(self.names, row.unbind(), strict=True))

    def read(self, count: int) -> list[dict[str, float]]:
        """The newest `count` rows, oldest first, on the host: one synchronisation.

        Raises:
            ValueError: `count` is more than the ring keeps.
        """
        if not 0 <= count <= self.capacity:
            raise ValueError(f"count must be 0 to {self.capacity} (the ring's rows), not {count}")
        slot, rows = int(self.slot), self.rows.tolist()
        newest_last = [rows[(slot - count + offset) % self.capacity] for offset in range(count)]
        return [dict(zip(self.names, row, strict=True)) for row in newest_last]

    def state(self) -> list[Tensor]:
        """The tensors that writing changes."""
        return [self.rows, self.slot]
