"""Drawn Sequentials: whatever stands next to whatever, accelerated or restored, it is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan

CHANNELS = 4

MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "grouped": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "plain_norm": lambda: nn.BatchNorm2d(CHANNELS, affine=False, momentum=None),
    "untracked_norm": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.3),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "identity": nn.Identity,
    "normed": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANNELS, CHANNELS, 1)),
    "fused": lambda: fastgan.nn.Conv2d(CHANNELS, CHANNELS, 1, activation="relu"),
}


@st.composite
def chains(draw: Any) -> nn.Sequential:
    """A chain of one to seven modules, some standing in it twice, some frozen, some nested."""
    torch.manual_seed(draw(st.integers(0, 9)))
    modules: list[nn.Module] = []
    for name in draw(st.lists(st.sampled_from(sorted(MODULES)), min_size=1, max_size=7)):
        module = MODULES[name]()
        module.train(draw(st.booleans()))
        module.requires_grad_(draw(st.booleans()))
        modules.append(module)
    again = draw(st.integers(0, len(modules) - 1))
    modules.insert(draw(st.integers(0, len(modules))), modules[again])
    if draw(st.booleans()):
        start = draw(st.integers(0, len(modules) - 1))
        modules[start:] = [nn.Sequential(*modules[start:])]
    return nn.Sequential(*modules)


def passed(network: nn.Module, images: Tensor) -> dict[str, Any]:
    """Output, gradients and buffers after one pass."""
    network.zero_grad()
    # A chain may begin with an inplace activation, which a leaf would refuse.
    leaf = images.clone().requires_grad_()
    output = network(leaf * 1)
    output.sin().sum().backward()
    return {
        "output": output.detach(),
        "input": leaf.grad,
        **{name: p.grad for name, p in network.named_parameters()},
        **{name: buffer.clone() for name, buffer in network.named_buffers()},
    }


def passed_or_refused(network: nn.Module, images: Tensor) -> dict[str, Any] | None:
    """What `passed` finds, or None where autograd refuses: what it needs was written in place."""
    try:
        return passed(network, images)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None


@settings(max_examples=60)
@given(chain=chains(), data=st.data())
def test_drawn_chain_computes_the_same(chain: nn.Sequential, data: st.DataObject) -> None:
    images = torch.randn(3, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1))
    plain = chain
    network = fastgan.accelerate(copy.deepcopy(chain))
    torch.testing.assert_close(passed_or_refused(network, images), passed_or_refused(plain, images))

    watched = data.draw(st.integers(0, len(chain) - 1), label="hooked module")
    seen: list[Tensor] = []
    for model in (network, plain):
        model[watched].register_forward_hook(lambda m, i, o: seen.append(o.detach().clone()))
    torch.testing.assert_close(passed_or_refused(network, images), passed_or_refused(plain, images))
    half = len(seen) // 2
    torch.testing.assert_close(seen[:half], seen[half:])

    stop = data.draw(st.integers(1, len(chain)), label="slice")
    torch.testing.assert_close(network[:stop](images.clone()), plain[:stop](images.clone()))

    fastgan.restore(network)
    assert [type(m) for m in network.modules()] == [type(m) for m in plain.modules()]


TAILS: dict[str, list[Callable[[], nn.Module]]] = {
    "conv": [MODULES["conv"]],
    "transposed": [MODULES["transposed"]],
    "norm": [MODULES["norm"]],
    "conv, leaky": [MODULES["conv"], MODULES["leaky_relu"]],
    "transposed, leaky": [MODULES["transposed"], MODULES["leaky_relu"]],
    "norm, leaky": [MODULES["norm"], MODULES["leaky_relu"]],
    "conv, leaky, dropout": [
        MODULES["conv"],
        MODULES["leaky_relu"],
        lambda: nn.Dropout(0.0, inplace=True),
    ],
}


@pytest.mark.parametrize("tail", TAILS)
def test_output_may_be_written_where_torch_allows_it(tail: str) -> None:
    """`features += skip` after a block: what kernels keep for the gradient must not be that."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = nn.Sequential(MODULES["norm"](), *(make() for make in TAILS[tail])).to(device)
    network = fastgan.accelerate(copy.deepcopy(plain))
    images = torch.randn(2, CHANNELS, 4, 4, device=device)
    with fastgan.backend("triton"):
        found = written_output(network, images)
    assert_same(found, written_output(plain, images))


def written_output(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a pass whose output is changed in place."""
    output = network(images)
    output.mul_(2)
    output.sin().sum().backward()
    gradients = {f"grad {name}": p.grad for name, p in network.named_parameters()}
    return {"output": output.detach(), **gradients}
