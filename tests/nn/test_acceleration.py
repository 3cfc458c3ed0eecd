"""accelerate and restore leave what a network computes, holds and is called alone."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from agreement import assert_same, classes, train_step
from gan_networks import NETWORKS, build, dcgan_discriminator
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastgan

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def two_steps(network: nn.Module, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Two passes with an update between them, so that statistics and weights have moved."""
    train_step(network, arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    return train_step(network, arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
def test_accelerated_network_computes_the_same(name: str, device: str) -> None:
    plain, arguments = build(name, device)
    network, _ = build(name, device)
    keys = list(network.state_dict())

    assert fastgan.accelerate(network) is network

    assert list(network.state_dict()) == keys
    assert_same(two_steps(network, arguments), two_steps(plain, arguments))
    assert_same(dict(network.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator"])
def test_autocast_and_channels_last_as_in_training(name: str, device: str) -> None:
    plain, arguments = build(name, device)
    plain = plain.to(memory_format=torch.channels_last)
    arguments = tuple(x.to(memory_format=torch.channels_last) for x in arguments)
    network = fastgan.accelerate(copy.deepcopy(plain))
    with torch.autocast(device, dtype=torch.bfloat16):
        found = train_step(network, arguments)
        expected = train_step(plain, arguments)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert found["output"].stride() == expected["output"].stride()
    assert_same(found, expected, torch.bfloat16)


@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator", "unet"])
def test_accelerated_network_on_triton_kernels(name: str) -> None:
    """Every layer on a kernel, in Triton's interpreter where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, arguments = build(name, device)
    network, _ = build(name, device)
    fastgan.accelerate(network)
    with fastgan.backend("triton"):
        found = two_steps(network, arguments)
        explanation = fastgan.explain(network, arguments)
    assert_same(found, two_steps(plain, arguments))
    served = [record for record in explanation if record.type.endswith("2d")]
    assert {record.implementation for record in served} == {"triton"}


@pytest.mark.parametrize("name", NETWORKS)
def test_restore_gives_back_the_original_modules(name: str) -> None:
    network, arguments = build(name)
    modules = dict(network.named_modules(remove_duplicate=False))
    before = classes(network)
    attributes = {key: dict(module.__dict__) for key, module in modules.items()}
    parameters = dict(network.named_parameters())

    fastgan.accelerate(network)
    assert classes(network) != before
    fastgan.restore(network)

    after = dict(network.named_modules(remove_duplicate=False))
    assert after.keys() == modules.keys()
    assert all(after[key] is modules[key] for key in modules)
    assert classes(network) == before
    for key, module in modules.items():
        assert module.__dict__.keys() == attributes[key].keys()
        assert all(module.__dict__[n] is value for n, value in attributes[key].items())
    assert all(dict(network.named_parameters())[n] is p for n, p in parameters.items())

    plain, _ = build(name)
    assert_same(two_steps(network, arguments), two_steps(plain, arguments))


def test_second_accelerate_changes_nothing() -> None:
    network = fastgan.accelerate(dcgan_discriminator())
    before = classes(network)
    assert classes(fastgan.accelerate(network)) == before


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_repr_stay(name: str) -> None:
    """Initialisers that look for "Conv" in a class name, and logs, find what they knew."""
    network, _ = build(name)
    before = repr(network)
    assert repr(fastgan.accelerate(network)) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 4, 3),
        lambda: nn.ConvTranspose2d(3, 4, 3),
        lambda: nn.BatchNorm2d(3),
        lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
)
def test_root_that_is_a_layer_keeps_its_identity(make: Any) -> None:
    layer = make()
    original = type(layer)
    assert fastgan.accelerate(layer) is layer
    assert type(layer) is not original
    assert isinstance(
        layer, fastgan.nn.Conv2d | fastgan.nn.ConvTranspose2d | fastgan.nn.BatchNorm2d
    )
    assert fastgan.restore(layer) is layer
    assert type(layer) is original


def test_optimizer_weakrefs_and_flags_survive() -> None:
    network = dcgan_discriminator()
    network[0].weight.requires_grad_(False)
    network[3].eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    reference = weakref.ref(network[0])
    fastgan.accelerate(network)
    assert reference() is network[0]
    assert not network[0].weight.requires_grad
    assert not network[3].training
    assert network[2].training
    before = network[2].weight.clone()
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert not torch.equal(network[2].weight, before)


def test_mode_of_one_layer_is_its_own() -> None:
    network, (images,) = build("dcgan_discriminator")
    plain, _ = build("dcgan_discriminator")
    fastgan.accelerate(network)
    for model in (network, plain):
        model(images)
        model[3].eval()
    assert_same(train_step(network, (images,)), train_step(plain, (images,)))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "torch_save": lambda network: _through_torch_save(network),
}


def _through_torch_save(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# Parametrized modules refuse to be pickled, and lambdas of old weight_norm non-leaf tensors to be
# copied: torch's own limits, with or without fastgan.
COPYABLE = sorted(set(NETWORKS) - {"spectral_discriminator", "weight_normed_generator"})


@pytest.mark.parametrize("accelerated", [True, False], ids=["accelerated", "restored"])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", COPYABLE)
def test_copies_work_and_can_be_restored(name: str, how: str, accelerated: bool) -> None:
    plain, arguments = build(name)
    network, _ = build(name)
    original = classes(network)
    fastgan.accelerate(network)
    if not accelerated:
        fastgan.restore(network)
    twin = COPIES[how](network)
    assert classes(twin) == classes(network)
    assert_same(train_step(twin, arguments), train_step(plain, arguments))
    assert classes(fastgan.restore(twin)) == original


def test_deepcopy_of_parametrized_layers() -> None:
    network, arguments = build("spectral_discriminator")
    plain, _ = build("spectral_discriminator")
    original = classes(network)
    fastgan.accelerate(network)
    twin = copy.deepcopy(network)
    assert_same(two_steps(twin, arguments), two_steps(plain, arguments))
    assert classes(fastgan.restore(twin)) == original
    assert classes(network) != original
    assert classes(fastgan.restore(network)) == original


def test_state_dict_goes_either_way() -> None:
    network, _ = build("unet")
    plain, _ = build("unet")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(2)
    fastgan.accelerate(network).load_state_dict(plain.state_dict())
    fastgan.restore(network).load_state_dict(fastgan.accelerate(plain).state_dict())
    assert_same(dict(network.state_dict()), dict(plain.state_dict()))
