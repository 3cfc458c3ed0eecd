"""Random numbers as pure functions of (seed, stream, step).

Nothing random carries a state from step to step, so a run resumed at a step draws exactly what the
uninterrupted run drew, and no state has to be saved. The user's own random state is left alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch

ALGORITHM = "blake2b(seed, step, stream) seeds one torch.Generator per draw"


def mixed_seed(seed: int, stream: str, step: int = 0) -> int:
    """A well-mixed 63-bit seed for the random numbers of one purpose at one step."""
    message = struct.pack("<QQ", seed, step) + stream.encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little") >> 1


def generator_for(
    seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator on `device` for one purpose at one step."""
    generator = torch.Generator(device=device)
    generator.manual_seed(mixed_seed(seed, stream, step))
    return generator


def latents(
    seed: int,
    stream: str,
    step: int,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """z ~ N(0, 1) of `shape`, float32, on `device`: a function of (seed, stream, step) alone.

    Training draws the stream "latents", with shape [D steps, batch, latent].
    """
    generator = generator_for(seed, stream, step, device)
    return torch.randn(shape, generator=generator, device=device)


@contextmanager
def drawing_from(
    seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Within: torch's default generators (initialisation, dropout) follow (seed, stream, step).

    The state that they had before is restored afterwards.
    """
    device = torch.device(device)
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        index = device.index if device.index is not None else torch.cuda.current_device()
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(mixed_seed(seed, stream, step))
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
