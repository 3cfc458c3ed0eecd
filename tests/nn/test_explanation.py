"""explain tells the truth about every layer and leaves no trace of having looked."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import pytest
import rich.console
import torch
from gan_networks import NETWORKS, build, dcgan_discriminator
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

import fastgan

SERVED = {"reference", "matmul", "triton", "cuda", "cpu"}


def everything(network: nn.Module) -> dict[str, Any]:
    """All that explain must not touch: values, versions and identities."""
    return {
        "tensors": {
            name: (id(tensor), tensor._version, tensor.detach().clone())
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        },
        "attributes": [
            {
                key: dict(value) if isinstance(value, dict) else id(value)
                for key, value in vars(module).items()
            }
            for module in network.modules()
        ],
        "classes": [type(module) for module in network.modules()],
        "random": torch.random.get_rng_state(),
        "python": random.getstate(),
    }


def assert_untouched(found: dict[str, Any], before: dict[str, Any]) -> None:
    assert found["classes"] == before["classes"]
    assert found["attributes"] == before["attributes"]
    assert found["python"] == before["python"]
    assert torch.equal(found["random"], before["random"])
    for name, (identity, version, value) in before["tensors"].items():
        assert found["tensors"][name][:2] == (identity, version), name
        assert torch.equal(found["tensors"][name][2], value), name


@pytest.mark.parametrize("accelerated", [True, False], ids=["accelerated", "plain"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_explained_and_nothing_changes(name: str, accelerated: bool) -> None:
    network, arguments = build(name)
    if accelerated:
        fastgan.accelerate(network)
    if isinstance(network, nn.Sequential):
        network.append(nn.Dropout(0.5))  # draws random numbers
    before = everything(network)
    explanation = fastgan.explain(network, arguments)
    assert_untouched(everything(network), before)

    convolutions = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    names = dict(network.named_modules(remove_duplicate=False))
    records = {record.layer: record for record in explanation}
    for layer, module in names.items():
        if isinstance(module, convolutions) and layer in records:
            assert records[layer].implementation in SERVED
            assert records[layer].type == type(module).__name__
    assert sum(isinstance(names[layer], convolutions) for layer in records) >= 2
    assert all(record.calls > 0 and record.input is not None for record in explanation)


def test_same_before_and_after_accelerate() -> None:
    network, arguments = build("unet")
    before = fastgan.explain(network, arguments)
    assert fastgan.explain(fastgan.accelerate(network), arguments) == before


def test_dcgan_discriminator_line_by_line() -> None:
    network = dcgan_discriminator().to(memory_format=torch.channels_last)
    images = torch.zeros(2, 3, 16, 16).to(memory_format=torch.channels_last)
    explanation = fastgan.explain(network, images)
    assert [(r.layer, r.type, r.fused) for r in explanation] == [
        ("0", "Conv2d", "LeakyReLU"),
        ("1", "LeakyReLU", "0"),
        ("2", "Conv2d", ""),
        ("3", "BatchNorm2d", "LeakyReLU"),
        ("4", "LeakyReLU", "3"),
        ("5", "Conv2d", "Sigmoid"),
        ("6", "Sigmoid", "5"),
    ]
    first = explanation["0"]
    assert first.input == (2, 3, 16, 16)
    assert (first.dtype, first.layout) == ("float32", "channels_last")
    assert explanation["1"].implementation == "fused"
    assert explanation["6"].layout == "both"
    with pytest.raises(KeyError, match="no layer is called 'head'"):
        explanation["head"]


def test_reasons_are_given() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    hooked = nn.Conv2d(4, 4, 3, padding=1)
    network = nn.Sequential(
        Own(3, 4, 3), nn.ReLU(), nn.SyncBatchNorm(4).eval(), hooked, nn.Tanh(), nn.Flatten()
    )
    hooked.register_forward_hook(lambda module, inputs, output: None)
    explanation = fastgan.explain(fastgan.accelerate(network), torch.zeros(1, 3, 5, 5))
    assert "Own is a subclass of Conv2d with its own forward" in explanation["0"].reason
    assert "not right after a fastgan layer" in explanation["1"].reason
    assert "no fastgan operator computes SyncBatchNorm" in explanation["2"].reason
    assert "not fused: a hook on the layer" in explanation["3"].reason
    assert explanation["4"].reason == "a hook on the layer would see the activated output"
    assert explanation["5"].implementation == "torch"


def test_escaping_leaky_relu_is_fused_where_it_works_in_place() -> None:
    images = torch.zeros(2, 3, 5, 5)
    explanation = fastgan.explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU()), images)
    assert "use LeakyReLU(inplace=True)" in explanation["0"].reason
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(inplace=True))
    assert fastgan.explain(network, images)["0"].fused == "LeakyReLU"
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Flatten())
    assert fastgan.explain(network, images)["0"].fused == "LeakyReLU"


def test_backend_that_cannot_serve_is_said() -> None:
    network = fastgan.accelerate(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)))
    with fastgan.backend("cuda"):
        explanation = fastgan.explain(network, torch.zeros(2, 4, 5, 5))
    assert explanation["0"].implementation == "none"
    assert explanation["0"].reason
    with fastgan.backend("reference"):
        explanation = fastgan.explain(network, torch.zeros(2, 4, 5, 5))
    assert [record.implementation for record in explanation] == ["reference", "reference"]


def test_shared_layers_are_told_by_place() -> None:
    network, arguments = build("shared_norm")
    explanation = fastgan.explain(network, arguments)
    assert explanation["rectified.1"].fused == "ReLU"
    assert explanation["bounded.1"].fused == "Tanh"
    assert explanation["raw.1"].fused == ""


def test_repeated_activation_and_repeated_calls() -> None:
    act = nn.ReLU()
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), act, nn.BatchNorm2d(3), act, act)
    network = nn.Sequential(block, block)
    explanation = fastgan.explain(network, torch.zeros(2, 3, 5, 5))
    assert [(r.layer, r.implementation in SERVED, r.fused) for r in explanation][:5] == [
        ("0.0", True, "ReLU"),
        ("0.1", False, "0.0"),
        ("0.2", True, "ReLU"),
        ("0.3", False, "0.2"),
        ("0.4", False, ""),
    ]
    assert [record.layer for record in explanation][5:] == [f"1.{i}" for i in range(5)]

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.unused = nn.Conv2d(3, 3, 3)

        def forward(self, images: Tensor, scale: Tensor) -> Tensor:
            return self.conv(self.conv(images)) * scale

    arguments = {"images": torch.zeros(2, 3, 5, 5), "scale": torch.ones(1)}
    explanation = fastgan.explain(Twice(), arguments)
    assert explanation["conv"].calls == 2
    assert explanation["unused"].implementation == "-"
    assert explanation["unused"].reason == "not reached"


def test_single_layer_and_lazy_layer() -> None:
    explanation = fastgan.explain(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 5, 5))
    assert [record.layer for record in explanation] == [""]
    assert "(model)" in str(explanation)
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    explanation = fastgan.explain(lazy, torch.zeros(1, 3, 5, 5))
    assert "lazy" in explanation["0"].reason
    assert isinstance(lazy[0], nn.LazyConv2d)


def test_inside_autocast_and_compiled_and_wrapped() -> None:
    network, arguments = build("dcgan_discriminator")
    expected = fastgan.explain(network, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastgan.explain(network, arguments)["2"].dtype == "bfloat16"
    compiled = fastgan.explain(torch.compile(network, backend="eager"), arguments)
    assert [record.layer for record in compiled] == [f"_orig_mod.{r.layer}" for r in expected]
    assert [record.implementation for record in compiled] == [r.implementation for r in expected]
    assert fastgan.explain(DataParallel(network), arguments)["module.0"].fused == "LeakyReLU"


def test_graph_waiting_for_backward_is_not_disturbed() -> None:
    network, (images,) = build("spectral_discriminator")
    twin = copy.deepcopy(network)
    loss = network(images).square().sum()
    fastgan.explain(network, images)
    loss.backward()
    twin(images).square().sum().backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_failing_example_leaves_no_hooks() -> None:
    network, _ = build("dcgan_discriminator")
    before = everything(network)
    with pytest.raises(RuntimeError):
        fastgan.explain(network, torch.zeros(1, 5, 16, 16))
    assert_untouched(everything(network), before)


def test_forms_of_the_table() -> None:
    explanation = fastgan.explain(*build("one_channel_discriminator"))
    assert len(explanation.records) == len(explanation) == 7
    assert explanation.records[0]["layer"] == "0"
    lines = str(explanation).splitlines()
    assert lines[0].split()[:2] == ["layer", "type"]
    assert len(lines) == 8
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(explanation)
    assert "LeakyReLU" in console.export_text()
