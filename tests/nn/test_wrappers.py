"""What people put around a model: compile, DDP, export, fx, functional calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import assert_same
from gan_networks import build
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.parallel import DistributedDataParallel

import fastgan

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def forward_and_gradients(
    run: Any, network: nn.Module, arguments: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    network.zero_grad()
    output = run(*arguments)
    output.square().sum().backward()
    named = [(name.removeprefix("module."), p) for name, p in network.named_parameters()]
    return {"output": output.detach(), **{f"grad {name}": p.grad for name, p in named}}


class CountingBackend:
    """A backend that counts how often torch.compile hands it a graph, and runs it as it is."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


COMPILED = [
    "dcgan_generator",
    "dcgan_discriminator",
    "evaluated_discriminator",
    "spectral_discriminator",
    "old_spectral_discriminator",
    "unet",
    "conditional_generator",
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_whole_and_once(name: str, device: str) -> None:
    plain, arguments = build(name, device)
    network, _ = build(name, device)
    fastgan.accelerate(network)
    backend = CountingBackend()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for _ in range(3):
        found = forward_and_gradients(compiled, network, arguments)
        expected = forward_and_gradients(plain, plain, arguments)
        assert_same(found, expected)
    assert backend.graphs == 1
    assert_same(network.state_dict(), plain.state_dict())


def test_compiles_whole_and_once_on_triton_kernels() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, arguments = build("dcgan_generator", device)
    network, _ = build("dcgan_generator", device)
    fastgan.accelerate(network)
    backend = CountingBackend()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    with fastgan.backend("triton"):
        for _ in range(2):
            found = forward_and_gradients(compiled, network, arguments)
            expected = forward_and_gradients(plain, plain, arguments)
            assert_same(found, expected)
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_generator_and_discriminator_compile_with_inductor(device: str) -> None:
    generator, arguments = build("dcgan_generator", device)
    discriminator, _ = build("dcgan_discriminator", device)
    plain = nn.Sequential(generator, discriminator)
    network = fastgan.accelerate(copy.deepcopy(plain))
    compiled = torch.compile(network, fullgraph=True)
    for recompiling_is_an_error in (False, True):
        with torch._dynamo.config.patch(error_on_recompile=recompiling_is_an_error):
            found = forward_and_gradients(compiled, network, arguments)
        expected = forward_and_gradients(plain, plain, arguments)
        assert_same(found, expected)


def test_accelerate_and_restore_of_a_compiled_model() -> None:
    network, arguments = build("dcgan_discriminator")
    backend = CountingBackend()
    compiled = torch.compile(network, backend=backend)
    expected = compiled.eval()(*arguments)
    assert fastgan.accelerate(compiled) is compiled
    assert isinstance(network[0], fastgan.nn.Conv2d)
    torch.testing.assert_close(compiled(*arguments), expected)
    assert backend.graphs == 2
    fastgan.restore(compiled)
    assert type(network[0]) is nn.Conv2d
    torch.testing.assert_close(compiled(*arguments), expected)


def test_submodule_compiled_in_place_is_not_bypassed() -> None:
    network, (images,) = build("dcgan_discriminator")
    plain, _ = build("dcgan_discriminator")
    backend = CountingBackend()
    fastgan.accelerate(network)[3].compile(backend=backend)
    torch.testing.assert_close(network(images), plain(images))
    assert backend.graphs == 1


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("order", ["accelerate_then_wrap", "wrap_then_accelerate"])
@pytest.mark.parametrize("name", ["dcgan_discriminator", "spectral_discriminator", "unet"])
def test_distributed_data_parallel(name: str, order: str) -> None:
    network, arguments = build(name)
    plain, _ = build(name)
    if order == "accelerate_then_wrap":
        fastgan.accelerate(network)
    wrapped = DistributedDataParallel(network)
    if order == "wrap_then_accelerate":
        assert fastgan.accelerate(wrapped) is wrapped
    for _ in range(2):
        found = forward_and_gradients(wrapped, wrapped, arguments)
        assert_same(found, forward_and_gradients(plain, plain, arguments))
    fastgan.restore(wrapped)
    assert not any(isinstance(module, fastgan.nn.Conv2d) for module in wrapped.modules())
    found = forward_and_gradients(wrapped, wrapped, arguments)
    assert_same(found, forward_and_gradients(plain, plain, arguments))


@pytest.mark.usefixtures("process_group")
def test_explain_does_not_talk_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    network, arguments = build("dcgan_discriminator")
    wrapped = DistributedDataParallel(network)

    def refuse(*args: Any) -> Any:
        raise AssertionError("DDP's forward was called")

    monkeypatch.setattr(DistributedDataParallel, "forward", refuse)
    explanation = fastgan.explain(wrapped, arguments)
    assert explanation["module.0"].fused == "LeakyReLU"


def test_conversion_to_sync_batch_norm() -> None:
    network, (images,) = build("dcgan_discriminator")
    expected = network.eval()(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fastgan.accelerate(network))
    assert type(converted[3]) is nn.SyncBatchNorm
    torch.testing.assert_close(converted(images), expected)


@pytest.mark.parametrize("state", ["accelerated", "restored"])
@pytest.mark.parametrize(
    "name", ["dcgan_generator", "dcgan_discriminator", "resnet_discriminator", "unet"]
)
def test_export(name: str, state: str) -> None:
    network, arguments = build(name)
    expected = network.eval()(*arguments)
    fastgan.accelerate(network)
    if state == "restored":
        fastgan.restore(network)
    program = torch.export.export(network, arguments)
    torch.testing.assert_close(program.module()(*arguments), expected)
    assert set(program.state_dict) == set(network.state_dict())


def test_layers_of_an_fx_graph() -> None:
    network, arguments = build("resnet_discriminator")
    traced = torch.fx.symbolic_trace(network.eval())
    expected = traced(*arguments)
    fastgan.accelerate(traced)
    assert any(isinstance(module, fastgan.nn.Conv2d) for module in traced.modules())
    torch.testing.assert_close(traced(*arguments), expected)


def test_functional_call_and_transforms() -> None:
    network, (images,) = build("dcgan_discriminator")
    network.eval()
    parameters = {name: p.detach() * 1.5 for name, p in network.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(network, values, (images,)).square().sum()

    expected = grad(loss)(parameters)
    fastgan.accelerate(network)
    torch.testing.assert_close(grad(loss)(parameters), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator"])
def test_gradients_of_each_sample_and_of_an_ensemble(
    name: str, layout: torch.memory_format
) -> None:
    network, (images,) = build(name)
    network.eval().to(memory_format=layout)
    one = {name: p.detach() for name, p in network.named_parameters()}
    three = {name: torch.stack([p, 0.5 * p, -p]) for name, p in one.items()}

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, values, (image[None],)).square().sum()

    of_each_sample = vmap(grad(loss), in_dims=(None, 0))
    of_an_ensemble = vmap(of_each_sample, in_dims=(0, None))
    expected = of_each_sample(one, images), of_an_ensemble(three, images)
    fastgan.accelerate(network)
    found = of_each_sample(one, images), of_an_ensemble(three, images)
    torch.testing.assert_close(found, expected)


def test_data_parallel_replica() -> None:
    network, (images,) = build("dcgan_discriminator")
    expected = network.eval()(images)
    replica = fastgan.accelerate(network)._replicate_for_data_parallel()
    torch.testing.assert_close(replica(images), expected)
