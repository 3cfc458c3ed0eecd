"""The layers built by hand: the arguments, errors and results of their torch.nn twins."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan

ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.3),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}


def same_state(layer: nn.Module, plain: nn.Module) -> None:
    plain.load_state_dict(layer.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "BatchNorm2d"])
def test_positional_arguments_are_those_of_the_twin(name: str) -> None:
    def positional(cls: type) -> list[tuple[str, Any]]:
        return [
            (p.name, p.default)
            for p in inspect.signature(cls).parameters.values()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]

    assert positional(getattr(fastgan.nn, name)) == positional(getattr(nn, name))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "image"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 2, "padding": (1, 2), "bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "groups": 2},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "replicate", "stride": 2},
    ],
)
def test_conv2d(arguments: dict[str, Any], batched: bool, activation: str) -> None:
    layer = fastgan.nn.Conv2d(4, 6, 3, activation=activation, negative_slope=0.3, **arguments)
    plain = nn.Conv2d(4, 6, 3, **arguments)
    same_state(layer, plain)
    images = torch.randn(2, 4, 7, 8)[slice(None) if batched else 0]
    torch.testing.assert_close(layer(images), ACTIVATIONS[activation](plain(images)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "image"])
@pytest.mark.parametrize("size", [None, (9, 11), (10, 12)])
def test_conv_transpose2d(size: tuple[int, int] | None, batched: bool, activation: str) -> None:
    layer = fastgan.nn.ConvTranspose2d(
        4, 6, 3, 2, 1, groups=2, activation=activation, negative_slope=0.3
    )
    plain = nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)
    same_state(layer, plain)
    images = torch.randn(2, 4, 5, 6)[slice(None) if batched else 0]
    expected = ACTIVATIONS[activation](plain(images, output_size=size))
    torch.testing.assert_close(layer(images, size), expected)


def test_conv_transpose2d_refuses_an_impossible_size() -> None:
    layer = fastgan.nn.ConvTranspose2d(4, 6, 3, 2, 1)
    with pytest.raises(ValueError, match="requested an output size"):
        layer(torch.randn(2, 4, 5, 5), output_size=(20, 20))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"momentum": None},
        {"momentum": 0.0, "eps": 0.1},
        {"affine": False},
        {"track_running_stats": False},
    ],
)
def test_batch_norm(arguments: dict[str, Any], activation: str, training: bool) -> None:
    layer = fastgan.nn.BatchNorm2d(5, activation=activation, negative_slope=0.3, **arguments)
    plain = nn.BatchNorm2d(5, **arguments)
    for module in (layer, plain):
        module.train()(torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) + 1)
        module.train(training)
    images = torch.randn(3, 5, 4, 4)
    torch.testing.assert_close(layer(images), ACTIVATIONS[activation](plain(images)))
    torch.testing.assert_close(dict(layer.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("momentum", [0.2, None])
def test_stat_groups_are_passes_one_after_another(momentum: float | None) -> None:
    layer = fastgan.nn.BatchNorm2d(5, momentum=momentum, activation="relu", stat_groups=3)
    plain = nn.BatchNorm2d(5, momentum=momentum)
    images = torch.randn(6, 5, 4, 4)
    expected = torch.cat([plain(part).relu() for part in images.chunk(3)])
    torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    layer.eval(), plain.eval()
    torch.testing.assert_close(layer(images[:1]), plain(images[:1]).relu())


@pytest.mark.parametrize("momentum", [0.2, None])
def test_stat_groups_must_divide_the_batch(momentum: float | None) -> None:
    layer = fastgan.nn.BatchNorm2d(5, momentum=momentum, stat_groups=3)
    with pytest.raises(ValueError, match="stat_groups=3"):
        layer(torch.randn(5, 5, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastgan.nn.Conv2d(3, 4, 3, activation="gelu"), "activation='gelu'"),
        (lambda: fastgan.nn.ConvTranspose2d(3, 4, 3, activation="gelu"), "activation='gelu'"),
        (lambda: fastgan.nn.BatchNorm2d(3, activation="gelu"), "activation='gelu'"),
        (lambda: fastgan.nn.BatchNorm2d(3, stat_groups=0), "stat_groups=0"),
        (lambda: fastgan.nn.Conv2d(3, 4, 3, padding_mode="mirror"), "padding_mode"),
        (lambda: fastgan.nn.BatchNorm2d(3)(torch.zeros(2, 3, 4)), "expected 4D input"),
        (lambda: fastgan.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)), "more than 1 value"),
        (lambda: fastgan.nn.DiscriminatorLoss("psychic"), "psychic"),
        (lambda: fastgan.nn.GeneratorLoss("psychic"), "psychic"),
    ],
)
def test_wrong_argument_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_repr_shows_what_goes_beyond_the_twin() -> None:
    assert "activation=relu" in repr(fastgan.nn.Conv2d(3, 4, 3, activation="relu"))
    norm = fastgan.nn.BatchNorm2d(3, activation="tanh", stat_groups=2)
    assert "activation=tanh, stat_groups=2" in repr(norm)
    assert repr(fastgan.nn.Conv2d(3, 4, 3)) == repr(nn.Conv2d(3, 4, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_and_layout_follow_the_twin(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 4, 6, 6, dtype=dtype).to(memory_format=layout)
        expected = fastgan.restore(network)(images)
        found = fastgan.accelerate(network)(images)
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        # So small a layer is torch's own; test_native_through_ops has the kernels' distance from
        # a bfloat16 twin, which rounds its statistics.
        torch.testing.assert_close(found, expected)


def test_autocast_follows_the_twin() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
    images = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images)
        found = fastgan.accelerate(network)(images)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


# --- losses ----------------------------------------------------------------------------------


def test_discriminator_and_generator_loss() -> None:
    real, fake = torch.randn(6, 1), torch.randn(5)
    loss, real_mean, fake_mean = fastgan.nn.DiscriminatorLoss(real_label=0.9)(real, fake)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.full_like(real, 0.9)) + bce(fake, torch.zeros_like(fake))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(real_mean, real.sigmoid().mean())
    torch.testing.assert_close(fake_mean, fake.sigmoid().mean())
    loss, fake_mean = fastgan.nn.GeneratorLoss("hinge")(fake)
    torch.testing.assert_close(loss, -fake.mean())
    assert "hinge" in repr(fastgan.nn.GeneratorLoss("hinge"))
    assert "real_label=0.9" in repr(fastgan.nn.DiscriminatorLoss(real_label=0.9))


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0])])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_loss_is_its_twin(reduction: str, weight: Tensor | None) -> None:
    found: list[Tensor] = []
    for cls in (fastgan.nn.BCELoss, nn.BCELoss):
        criterion = cls(weight=weight, reduction=reduction)
        probability = torch.tensor([[0.0, 0.3, 1.0], [0.9, 1.0, 0.0]], requires_grad=True)
        loss = criterion(probability, torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.2, 0.0]]))
        loss.sum().backward()
        found += [loss, probability.grad]
    torch.testing.assert_close(found[:2], found[2:])


def test_bce_loss_is_accelerated() -> None:
    criterion = nn.BCELoss()
    assert type(fastgan.accelerate(criterion)) is fastgan.nn.BCELoss
    assert type(fastgan.restore(criterion)) is nn.BCELoss
