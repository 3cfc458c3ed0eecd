"""The DCGAN networks against the PyTorch example's, and at every plannable size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastgan.errors import ConfigError
from fastgan.models import (
    DCGANDiscriminator,
    DCGANGenerator,
    build_networks,
    parse_image_size,
    plan_stages,
)


def example_generator(nz: int = 100, ngf: int = 64, nc: int = 3) -> nn.Sequential:
    """The generator of pytorch/examples dcgan, as FIELD's recipe spells it out."""
    layers: list[nn.Module] = []
    widths = [(nz, ngf * 8, 1, 0), (ngf * 8, ngf * 4, 2, 1), (ngf * 4, ngf * 2, 2, 1)]
    for before, after, stride, padding in [*widths, (ngf * 2, ngf, 2, 1)]:
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def example_discriminator(ndf: int = 64, nc: int = 3) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for factor in (1, 2, 4):
        layers += [
            nn.Conv2d(ndf * factor, ndf * factor * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf * factor * 2),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def example_weights_init(module: nn.Module) -> None:
    name = type(module).__name__
    if "Conv" in name:
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Wrapped(nn.Module):
    """Gives the example's Sequential its name, `main`."""

    def __init__(self, main: nn.Sequential) -> None:
        super().__init__()
        self.main = main


@pytest.mark.parametrize(
    ("ours", "example"),
    [(DCGANGenerator, example_generator), (DCGANDiscriminator, example_discriminator)],
)
def test_the_same_seed_gives_the_weights_of_the_example(ours, example):
    torch.manual_seed(7)
    expected = Wrapped(example())
    expected.apply(example_weights_init)
    torch.manual_seed(7)
    actual = ours()
    assert list(actual.state_dict()) == list(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], value), name


def test_outputs_and_checkpoints_are_those_of_the_example():
    g_example, d_example = Wrapped(example_generator()), Wrapped(example_discriminator())
    g_example.apply(example_weights_init), d_example.apply(example_weights_init)
    generator, discriminator = build_networks()
    generator.load_state_dict(g_example.state_dict())
    discriminator.load_state_dict(d_example.state_dict())
    latents = torch.randn(4, 100, 1, 1)
    images = g_example.main(latents)
    assert torch.equal(generator(latents), images)
    assert torch.equal(generator(latents[:, :, 0, 0]), images)
    assert torch.equal(discriminator(images), d_example.main(images).view(-1, 1).squeeze(1))


def test_parameter_counts_at_64_pixels():
    generator, discriminator = build_networks()
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568


def test_a_logit_discriminator_is_the_probability_one_without_its_sigmoid():
    probability = DCGANDiscriminator(32, width=8)
    logit = DCGANDiscriminator(32, width=8, output="logit")
    logit.load_state_dict(probability.state_dict())
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(torch.sigmoid(logit.eval()(images)), probability.eval()(images))


@given(
    st.integers(4, 33).map(lambda n: 4 * n),
    st.integers(4, 33).map(lambda n: 4 * n),
    st.integers(1, 4),
    st.sampled_from(["transposed", "resize"]),
)
def test_every_plannable_size_is_generated_and_judged(height, width, channels, upsample):
    generator, discriminator = build_networks(
        image_size=(height, width),
        channels=channels,
        latent_dim=3,
        generator_width=2,
        discriminator_width=2,
        upsample=upsample,
    )
    images = generator(torch.randn(2, 3))
    assert images.shape == (2, channels, height, width)
    assert images.abs().max() <= 1
    judged = discriminator(images)
    assert judged.shape == (2,)
    assert ((judged > 0) & (judged < 1)).all()


@given(st.integers(4, 300).map(lambda n: 4 * n), st.integers(4, 300).map(lambda n: 4 * n))
def test_a_plan_multiplies_back_to_the_image_and_could_not_go_deeper(height, width):
    plan = plan_stages(height, width)
    assert plan.image_size == (height, width)
    assert min(plan.stem) >= 4
    assert plan.stages >= 2
    assert min(plan.stem) < 8 or any(side % 2 for side in plan.stem)


@pytest.mark.parametrize(
    ("size", "stem", "stages"),
    [
        ((64, 64), (4, 4), 4),
        ((28, 28), (7, 7), 2),
        ((32, 32), (4, 4), 3),
        ((64, 96), (4, 6), 4),
        ((128, 128), (4, 4), 5),
        ((16, 64), (4, 16), 2),
        ((36, 36), (9, 9), 2),
    ],
)
def test_plans_of_common_sizes(size, stem, stages):
    plan = plan_stages(*size)
    assert (plan.stem, plan.stages) == (stem, stages)


def test_channels_stop_growing_at_eight_times_the_width():
    assert plan_stages(64, 64).channels(64) == (512, 256, 128, 64)
    assert plan_stages(256, 256).channels(64) == (512, 512, 512, 256, 128, 64)


@pytest.mark.parametrize("size", [(12, 16), (30, 32), (64, 0), (64, -4), (66, 66)])
def test_a_size_that_cannot_be_planned_is_refused_with_the_nearest(size):
    with pytest.raises(ConfigError, match=r"cannot be planned.*the nearest is \d+"):
        plan_stages(*size)


def test_image_sizes_are_read_from_numbers_and_words():
    assert parse_image_size(64) == (64, 64)
    assert parse_image_size("64") == (64, 64)
    assert parse_image_size("64x96") == (64, 96)
    assert parse_image_size([48, 64]) == (48, 64)
    for wrong in ("64x", "x", "a", "-64", "64x64x3", (1, 2, 3)):
        with pytest.raises(ConfigError, match="not understood"):
            parse_image_size(wrong)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"channels": 0}, "channels"),
        ({"latent_dim": -1}, "latent_dim"),
        ({"generator_width": 0}, "width"),
        ({"upsample": "bilinear"}, "upsample"),
        ({"output": "sigmoid"}, "output"),
        ({"preset": "stylegan"}, "preset"),
        ({"preset": "book"}, "book"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        build_networks(**arguments)
