"""Neighbours run fused in the container, and edits, slices and hooks see what they always saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import assert_same, classes, train_step
from gan_networks import NETWORKS, build, dcgan_discriminator, dcgan_generator
from torch import Tensor, nn

import fastgan


def spy_on_activations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the activations that fastgan's operators are asked for."""
    seen: list[str] = []
    from fastgan import ops

    for name in ("conv2d", "conv_transpose2d", "batch_norm_act"):
        operator = getattr(ops, name)

        def spied(*args: Any, _operator: Any = operator, _name: str = name, **kwargs: Any) -> Any:
            seen.append(f"{_name}+{kwargs['activation']}")
            return _operator(*args, **kwargs)

        monkeypatch.setattr(ops, name, spied)
    return seen


def test_neighbours_run_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_activations(monkeypatch)
    fastgan.accelerate(dcgan_generator())(torch.randn(2, 8, 1, 1))
    assert seen == [
        "conv_transpose2d+identity",
        "batch_norm_act+relu",
        "conv_transpose2d+identity",
        "batch_norm_act+relu",
        "conv_transpose2d+tanh",
    ]


@pytest.mark.parametrize("stop", range(1, 8))
def test_slice_of_accelerated_sequential(stop: int) -> None:
    network, (images,) = build("dcgan_discriminator")
    plain, _ = build("dcgan_discriminator")
    fastgan.accelerate(network)
    features, expected = network[:stop], plain[:stop]
    assert list(features.state_dict()) == list(expected.state_dict())
    assert_same(train_step(features, (images,)), train_step(expected, (images,)))
    assert classes(fastgan.restore(features)) == classes(expected)


def test_layers_called_one_by_one() -> None:
    network, (images,) = build("dcgan_discriminator")
    plain, _ = build("dcgan_discriminator")
    fastgan.accelerate(network)
    ours, theirs = images, images
    for layer, plain_layer in zip(network, plain, strict=True):
        ours, theirs = layer(ours), plain_layer(theirs)
        torch.testing.assert_close(ours, theirs)


def test_edited_sequential_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    network = fastgan.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    plain = nn.Sequential(network[0], nn.ReLU(), nn.BatchNorm2d(4), nn.Tanh(), nn.Sigmoid())
    network.append(nn.BatchNorm2d(4)).append(nn.Tanh()).append(nn.Sigmoid())
    images = torch.randn(2, 3, 6, 6)
    seen = spy_on_activations(monkeypatch)
    torch.testing.assert_close(network(images), plain(images))
    assert seen[0] == "conv2d+relu"
    network[1] = nn.LeakyReLU(0.3)
    torch.testing.assert_close(
        network[:2](images), nn.functional.leaky_relu(network[0](images), 0.3)
    )
    network[1].negative_slope = 0.7
    torch.testing.assert_close(
        network[:2](images), nn.functional.leaky_relu(network[0](images), 0.7)
    )


def test_activation_subclass_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    seen = spy_on_activations(monkeypatch)
    network = fastgan.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), Doubled()))
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(network(images), 2 * torch.relu(network[0](images)))
    assert set(seen) == {"conv2d+identity"}


def test_own_activation_is_not_replaced_by_the_next() -> None:
    layer = fastgan.nn.Conv2d(3, 4, 3, activation="relu")
    network = fastgan.accelerate(nn.Sequential(layer, nn.Tanh()))
    images = torch.randn(2, 3, 6, 6)
    expected = nn.functional.conv2d(images, layer.weight, layer.bias).relu().tanh()
    torch.testing.assert_close(network(images), expected)
    assert type(fastgan.restore(network)[0]) is fastgan.nn.Conv2d


# --- hooks -----------------------------------------------------------------------------------


def record_hooks(network: nn.Module, log: list[tuple[str, Tensor]]) -> None:
    """Put every kind of hook on every module; each writes down what it sees."""

    def tensors(values: Any) -> list[Tensor]:
        values = values if isinstance(values, tuple) else (values,)
        return [v.detach().clone() for v in values if isinstance(v, Tensor)]

    for name, module in network.named_modules():

        def note(kind: str, values: Any, name: str = name) -> None:
            log.extend((f"{name} {kind}", tensor) for tensor in tensors(values))

        # Backward hooks refuse inplace activations, in plain torch too.
        module.register_forward_hook(lambda m, i, o, note=note: note("forward", o))
        module.register_forward_pre_hook(lambda m, i, note=note: note("pre", i))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_hooks_see_what_they_saw(name: str, when: str) -> None:
    ours: list[tuple[str, Tensor]] = []
    theirs: list[tuple[str, Tensor]] = []
    network, arguments = build(name)
    plain, _ = build(name)
    record_hooks(plain, theirs)
    if when == "before":
        record_hooks(network, ours)
    fastgan.accelerate(network)
    if when == "after":
        record_hooks(network, ours)
    train_step(network, arguments)
    train_step(plain, arguments)
    assert [key for key, _ in ours] == [key for key, _ in theirs]
    for (key, value), (_, expected) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, msg=key)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_backward_hook_on_one_module(kind: str, place: int) -> None:
    gradients: list[list[Tensor]] = []
    images = torch.randn(3, 3, 12, 12)
    for wrap in (fastgan.accelerate, lambda network: network):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 2, 3),
            nn.ReLU(),
        )
        seen: list[Tensor] = []
        getattr(network[place], f"register_{kind}")(
            lambda m, *g, seen=seen: seen.extend(t.clone() for t in g[-1] if t is not None)
        )
        wrap(network)(images.clone().requires_grad_()).square().sum().backward()
        gradients.append(seen)
    assert gradients[1]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_forward_hook_that_replaces_the_output() -> None:
    network = fastgan.accelerate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    network[0].register_forward_hook(lambda module, inputs, output: -output)
    images = torch.randn(2, 3, 6, 6)
    convolved = nn.functional.conv2d(images, network[0].weight, network[0].bias)
    torch.testing.assert_close(network(images), torch.relu(-convolved))


def test_global_hook_is_called_for_every_module() -> None:
    network, (images,) = build("dcgan_generator")
    fastgan.accelerate(network)
    called: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: called.append(module)
    )
    try:
        network(images)
    finally:
        handle.remove()
    assert called == [*network, network]


def test_state_dict_hooks_are_called() -> None:
    network = dcgan_discriminator()
    network[0].register_state_dict_post_hook(
        lambda module, state, prefix, metadata: state.update({f"{prefix}extra": torch.ones(1)})
    )
    network[0].register_load_state_dict_pre_hook(
        lambda module, state, prefix, *rest: state.pop(f"{prefix}extra")
    )
    fastgan.accelerate(network)
    state = network.state_dict()
    assert "0.extra" in state
    network.load_state_dict(state, strict=True)


def test_pruned_layer_stays_pruned_and_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.utils import prune

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    prune.l1_unstructured(network[0], "weight", 0.5)
    images = torch.randn(2, 3, 6, 6)
    expected = network(images)
    seen = spy_on_activations(monkeypatch)
    torch.testing.assert_close(fastgan.accelerate(network)(images), expected)
    assert seen == ["conv2d+relu"]
