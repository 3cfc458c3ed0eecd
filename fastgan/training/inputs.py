"""What a step reads: images, random numbers and the pace of the average, at fixed addresses.

A captured step is replayed on the memory that it was recorded on, so each step's inputs are written
there first. What is random is drawn by generators that are seeded anew for every step, inside the
step itself, as a function of (seed, step) alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.image_batch import image_batch
from fastgan.training.config import TrainConfig
from fastgan.training.randomness import mixed_seed

# How a batch may come: places in the resident data set, bytes, or floats in [-1, 1].
KINDS = {torch.int64: "indices", torch.uint8: "pixels", torch.float32: "images"}


class StepInputs:
    """The static buffers of a step.

    Args:
        config: the run's settings.
        device: where the step runs.
        resident: uint8 [count, H, W, C], the whole data set on the device, or None.
        layout: of the images.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        resident: Tensor | None,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.config, self.device, self.resident = config, device, resident
        self.layout = layout
        self.count = config.batch_size * config.discriminator_steps
        self.average_weight = torch.zeros((), device=device)
        self.latents, self.flips = torch.Generator(device), torch.Generator(device)
        # By kind, made when the first batch of that kind comes.
        self._staged: dict[str, Tensor] = {}

    @property
    def generators(self) -> tuple[torch.Generator, ...]:
        """The generators that a step draws from."""
        return (self.latents, self.flips) if self.config.horizontal_flip else (self.latents,)

    def prepare(self, step: int, average_weight: float) -> None:
        """Make the random numbers and the pace of the average those of `step` (from 0)."""
        self.average_weight.fill_(average_weight)
        self.latents.manual_seed(mixed_seed(self.config.seed, "latents", step))
        self.flips.manual_seed(mixed_seed(self.config.seed, "flips", step))

    def stage(self, real: Tensor) -> None:
        """Write a batch of `count` to the buffer of its kind.

        Neither allocates on the device, but for the first batch of a kind, nor waits for it.
        """
        kind = KINDS[real.dtype]
        if kind not in self._staged:
            self._staged[kind] = torch.empty_like(real, device=self.device)
        self._staged[kind].copy_(real, non_blocking=True)

    def draw(self, kind: str) -> tuple[Tensor, Tensor]:
        """Images and z of the staged batch."""
        return self.images(self._staged[kind]), self.z(self.count)

    def images(self, real: Tensor) -> Tensor:
        """A batch on the device as the networks take it.

        Args:
            real: int64 [N] into the resident images; uint8 [N, C, H, W]; or float32
                [N, C, H, W] in [-1, 1], which is used as it is. The first two are mirrored by
                chance if the configuration says so.

        Returns:
            float32 [N, C, H, W] in [-1, 1].
        """
        kind = KINDS[real.dtype]
        if kind != "images":
            pixels, indices = self.resident, real
            if kind == "pixels":
                pixels = real.permute(0, 2, 3, 1).contiguous()
                indices = torch.arange(len(real), device=self.device)
            assert pixels is not None
            real = image_batch(pixels, indices, self._mirrored(len(real)))
        return real.contiguous(memory_format=self.layout)

    def _mirrored(self, count: int) -> Tensor | None:
        if not self.config.horizontal_flip:
            return None
        return torch.rand(count, generator=self.flips, device=self.device) < 0.5

    def z(self, count: int) -> Tensor:
        """Latents for `count` images, float32 [D steps, count / D steps, latent]."""
        parts = self.config.discriminator_steps
        shape = (parts, count // parts, self.config.latent_dim)
        return torch.randn(shape, generator=self.latents, device=self.device)
