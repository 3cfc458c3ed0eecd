"""accelerate and restore leave what a network computes, holds and is called alone."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from agreement import assert_same
from gan_networks import NETWORKS, build, dcgan_discriminator, dcgan_generator
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastgan

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def train_step(network: nn.Module, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """One forward and backward pass: everything that it computes, by name."""
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in arguments]
    network.zero_grad()
    output = network(*inputs)
    (
        output * torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    ).sum().backward()
    found = {"output": output.detach()}
    found |= {f"input {i}": x.grad for i, x in enumerate(inputs) if x.requires_grad}
    found |= {f"grad {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    found |= {f"buffer {n}": b.clone() for n, b in network.named_buffers()}
    return found


def two_steps(network: nn.Module, arguments: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Two passes with an update between them, so that statistics and weights have moved."""
    train_step(network, arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    return train_step(network, arguments)


def classes(network: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in network.named_modules()]


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


# --- fusion at the container -----------------------------------------------------------------


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
