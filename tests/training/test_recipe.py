"""The trainer's step against the PyTorch example's loop, weight for weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_recipe import plain_networks, train_plainly
from rich.console import Console

import fastgan
from fastgan.data import BatchIndices, open_images
from fastgan.training import TrainConfig, Trainer
from fastgan.training.randomness import latents
from fastgan.training.step import METRICS

# 25 steps, each of which may round differently: the bound on every parameter and buffer.
RELATIVE = 1e-5


@pytest.mark.parametrize(
    ("size", "channels", "width", "doublings", "batch", "steps"),
    [
        pytest.param(64, 3, 16, 4, 8, 25, id="64x64x3"),
        pytest.param(28, 1, 16, 2, 16, 25, id="28x28x1"),
        pytest.param(64, 3, 64, 4, 2, 25, id="64x64x3 at the example's width"),
    ],
)
def test_25_steps_equal_the_plain_script(
    tmp_path, size, channels, width, doublings, batch, steps
) -> None:
    pixels = np.random.Generator(np.random.PCG64(1)).integers(
        0, 256, (3 * batch + 1, size, size, channels), np.uint8
    )
    np.save(tmp_path / "images.npy", pixels)
    data = open_images(tmp_path / "images.npy", size, channels, cache_dir=tmp_path / "cache")
    config = TrainConfig(
        image_size=size,
        batch_size=batch,
        generator_width=width,
        discriminator_width=width,
        seed=3,
        steps=steps,
    )
    # torch's own operators: Adam divides a gradient by its size, so that one rounded otherwise
    # changes a weight by a whole step where it is nearly zero.
    with fastgan.backend("reference"):
        trainer = Trainer(config, data, tmp_path / "run", Console(quiet=True))

    generator, discriminator = plain_networks(size, channels, 100, width, doublings)
    ours = {"generator": trainer.state.generator, "discriminator": trainer.state.discriminator}
    plain = {"generator": generator, "discriminator": discriminator}
    for name, network in plain.items():
        network.load_state_dict(
            {key.removeprefix("main."): v for key, v in ours[name].state_dict().items()}
        )

    order = BatchIndices(len(pixels), batch, seed=3)
    batches = []
    for step in range(steps):
        images = torch.from_numpy(pixels[order.indices(step)]).permute(0, 3, 1, 2)
        noise = latents(3, "latents", step, (1, batch, 100)).view(batch, 100, 1, 1)
        batches.append((images.contiguous().float() / 127.5 - 1.0, noise))
    expected = train_plainly(generator, discriminator, batches)

    with fastgan.backend("reference"):
        figures = [trainer.step(trainer.batches.of_step(step)) for step in range(steps)]

    for name, network in plain.items():
        state = ours[name].state_dict()
        for key, theirs in network.state_dict().items():
            difference = (state[f"main.{key}"].double() - theirs.double()).abs().max()
            assert difference <= RELATIVE * theirs.double().abs().max(), (name, key)
    for step, row in enumerate(figures):
        got = [float(row[name]) for name in METRICS]
        assert got == pytest.approx(expected[step], rel=RELATIVE), step


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_25_steps_with_the_kernels_equal_those_with_torchs_operators(trainer, backend) -> None:
    runs = {}
    for name in ("reference", backend):
        with fastgan.backend(name):
            one = trainer(latent_dim=4, generator_width=2, discriminator_width=2, batch_size=4)
            runs[name] = [one.step(one.batches.of_step(step)) for step in range(25)], one.state
    (figures, state), (expected, expected_state) = runs[backend], runs["reference"]
    for file, tensors in expected_state.tensors().items():
        for key, theirs in tensors.items():
            ours = state.tensors()[file][key]
            difference = (ours.double() - theirs.double()).abs().max()
            assert difference <= RELATIVE * max(theirs.double().abs().max(), 1e-3), (file, key)
    for row, theirs in zip(figures, expected, strict=True):
        assert [float(row[name]) for name in METRICS] == pytest.approx(
            [float(theirs[name]) for name in METRICS], rel=RELATIVE
        )
