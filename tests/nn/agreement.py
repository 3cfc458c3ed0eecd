"""When two runs of one network agree: the tolerance, derived once.

The same network computed by other operators adds the same numbers in another order, in float32. A
sum of L terms, each order of which is good to sqrt(L) roundings (of its largest partial sum), is
taken in each operator, and its result rounded to the dtype that the network computes in; a tensor
at the end of a backward pass has come through as many operators forward as backward. So two runs
may differ by

    2 * DEPTH * (epsilon(dtype) + epsilon(float32) * sqrt(LENGTH)) * (the largest magnitude)

with the depth of the deepest network in `gan_networks` and the length of its longest sum. For a
gradient, the largest magnitude is that of the network's gradients together: the terms of one may
cancel (the bias in front of a batch norm has gradient zero), but not their roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from tolerances import accumulation, epsilon
from torch import Tensor, nn

DEPTH = 10  # operators in a row in SharedNorm and the residual discriminator
LENGTH = 4 * 16 * 16  # the images and pixels that a weight gradient sums over


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


def classes(network: nn.Module) -> list[tuple[str, type]]:
    """Every module's name and type."""
    return [(name, type(module)) for name, module in network.named_modules()]


def assert_same(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Assert that two runs of one network gave the same tensors.

    Args:
        found: tensors by name; those of gradients begin with "grad ".
        expected: the same, of the other run.
        dtype: what the network computes in.
    """
    rounding = epsilon(dtype) + epsilon(accumulation(dtype)) * math.sqrt(LENGTH)
    assert found.keys() == expected.keys()
    largest = max(
        (_largest(value) for name, value in expected.items() if _gradient(name)), default=0
    )
    for name, value in expected.items():
        scale = largest if _gradient(name) else _largest(value)
        torch.testing.assert_close(
            found[name],
            value,
            rtol=0,
            atol=2 * DEPTH * rounding * scale if value.is_floating_point() else 0.0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def _gradient(name: str) -> bool:
    return name.startswith("grad ")


def _largest(value: Tensor) -> float:
    return value.abs().max().item() if value.numel() else 0.0
