"""What accelerate must recognise: subclasses, lazy layers, parametrizations that come and go."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastgan
from fastgan.nn.acceleration import why_left_alone


class WiderConv2d(nn.Conv2d):
    """Only sets arguments: its forward is torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, 3, padding=1)
        self.note = "kept"

    def receptive_field(self) -> int:
        return self.kernel_size[0]


class EqualizedConv2d(nn.Conv2d):
    """Has a forward of its own (the equalised learning rate of progressive growing)."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, 0.5 * self.weight, self.bias)


class ScaledConv2d(nn.Conv2d):
    """Changes the inner method that torch's forward calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 3 * super()._conv_forward(input, weight, bias)


class ReversedSequential(nn.Sequential):
    """Runs its modules backwards."""

    def forward(self, input: Tensor) -> Tensor:
        for module in reversed(list(self)):
            input = module(input)
        return input


class Registered(nn.Conv2d):
    """Keeps a list of its subclasses, which must not grow behind its back."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.known.append(cls)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: EqualizedConv2d(3, 4, 3), "subclass of Conv2d with its own forward"),
        (lambda: ScaledConv2d(3, 4, 3), "subclass of Conv2d with its own _conv_forward"),
        (lambda: ReversedSequential(nn.ReLU()), "subclass of Sequential with its own forward"),
        (lambda: Registered(3, 4, 3), "controls how its instances are made"),
        (lambda: nn.LazyConv2d(4, 3), "lazy"),
        (lambda: nn.LazyBatchNorm2d(), "lazy"),
        (lambda: nn.SyncBatchNorm(4), "no fastgan operator computes SyncBatchNorm"),
        (lambda: nn.BatchNorm1d(4), "no fastgan operator computes BatchNorm1d"),
        (lambda: nn.Conv1d(4, 4, 3), "no fastgan operator computes Conv1d"),
        (lambda: torch.jit.script(nn.Conv2d(3, 4, 3)), "no fastgan operator computes"),
    ],
)
def test_module_left_alone_with_a_reason(make: Any, reason: str) -> None:
    module = make()
    original = type(module)
    assert reason in (why_left_alone(module) or "")
    fastgan.accelerate(module)
    assert type(module) is original
    assert Registered.known == []


def test_replaced_forward_is_left_alone() -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda images: images
    images = torch.randn(1, 3, 5, 5)
    assert fastgan.accelerate(layer)(images) is images
    assert type(layer) is nn.Conv2d


def test_attribute_that_the_twin_would_read_is_respected() -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.activation = nn.ReLU()
    assert type(fastgan.accelerate(layer)) is nn.Conv2d
    assert isinstance(layer.activation, nn.ReLU)


def test_subclass_without_a_forward_is_served_and_keeps_its_own() -> None:
    network = nn.Sequential(WiderConv2d(3), nn.ReLU(), WiderConv2d(6))
    plain = copy.deepcopy(network)
    fastgan.accelerate(network)
    layer = network[0]
    assert isinstance(layer, WiderConv2d)
    assert isinstance(layer, fastgan.nn.Conv2d)
    assert type(layer).__name__ == "WiderConv2d"
    assert type(network[2]) is type(layer)
    assert layer.note == "kept"
    assert layer.receptive_field() == 3
    images = torch.randn(2, 3, 6, 6)
    for again in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(again(images), plain(images))
        assert repr(fastgan.restore(again)) == repr(plain)
        assert type(again[0]) is WiderConv2d


def test_lazy_layers_are_served_once_they_have_a_shape() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    images = torch.randn(2, 3, 6, 6)
    fastgan.accelerate(network)
    network(images)
    assert type(network[0]) is nn.Conv2d
    fastgan.accelerate(network)
    assert type(network[0]) is fastgan.nn.Conv2d
    assert type(network[1]) is fastgan.nn.BatchNorm2d
    assert type(fastgan.restore(network)[0]) is nn.Conv2d


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_parametrization_registered_after_accelerate() -> None:
    layer, plain = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    plain.load_state_dict(layer.state_dict())
    fastgan.accelerate(layer)
    images = torch.randn(2, 3, 6, 6)
    for module in (layer, plain):
        parametrize.register_parametrization(module, "weight", Halved())
    torch.testing.assert_close(layer(images), plain(images))
    fastgan.restore(layer)
    assert not isinstance(layer, fastgan.nn.Conv2d)
    assert type(layer).__name__ == "ParametrizedConv2d"
    torch.testing.assert_close(layer(images), plain(images))
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d


def test_parametrization_removed_after_accelerate() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    images = torch.randn(2, 3, 6, 6)
    expected = layer(images)
    fastgan.accelerate(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is fastgan.nn.Conv2d
    torch.testing.assert_close(layer(images), expected)
    assert type(fastgan.restore(layer)) is nn.Conv2d


def test_second_parametrization_added_after_accelerate() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    original = type(layer)
    fastgan.accelerate(layer)
    parametrize.register_parametrization(layer, "bias", Halved())
    images = torch.randn(2, 3, 6, 6)
    expected = layer(images)
    fastgan.restore(layer)
    torch.testing.assert_close(layer(images), expected)
    parametrize.remove_parametrizations(layer, "bias")
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d
    assert isinstance(original.weight, property)


def test_parametrized_subclass() -> None:
    layer = parametrizations.spectral_norm(WiderConv2d(3))
    original = type(layer)
    images = torch.randn(2, 3, 6, 6)
    expected = layer.eval()(images)
    fastgan.accelerate(layer)
    assert isinstance(layer, fastgan.nn.Conv2d)
    torch.testing.assert_close(layer(images), expected)
    torch.testing.assert_close(copy.deepcopy(layer)(images), expected)
    assert type(fastgan.restore(layer)) is original


def test_copy_made_before_accelerate_stays_plain() -> None:
    layer = parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    twin = copy.deepcopy(layer)
    fastgan.accelerate(layer)
    assert not isinstance(twin, fastgan.nn.Conv2d)
    assert type(fastgan.restore(layer)) is type(twin)


def test_meta_device() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        images = torch.empty(2, 3, 8, 8)
    assert fastgan.accelerate(network)(images).shape == (2, 4, 6, 6)
    network.to_empty(device="cpu")
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 4, 6, 6)


def test_layers_built_by_hand_survive_restore() -> None:
    network = nn.Sequential(
        fastgan.nn.ConvTranspose2d(3, 4, 4, 2, 1), fastgan.nn.BatchNorm2d(4, activation="relu")
    )
    fastgan.restore(fastgan.accelerate(network))
    assert [type(layer) for layer in network] == [
        fastgan.nn.ConvTranspose2d,
        fastgan.nn.BatchNorm2d,
    ]
    assert type(network) is nn.Sequential
