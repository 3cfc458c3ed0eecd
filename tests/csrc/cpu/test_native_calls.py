"""How an operator's kernel is reached: directly, or by torch's dispatcher if somebody looks on."""

from __future__ import annotations

import pytest
import torch
from native_cases import dense
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan import ops


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return dense(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def normalised(x: torch.Tensor, training: bool) -> tuple[torch.Tensor, ...]:
    mean, var = torch.full((32,), 0.25), torch.full((32,), 2.0)
    y = ops.batch_norm_act(x, mean, var, mean + 1, mean, training, activation="leaky_relu")
    return y, mean, var


CALLS = {
    "conv2d": lambda x: ops.conv2d(x, drawn(64, 32, 4, 4), None, 2, 1, activation="relu"),
    "conv_transpose2d": lambda x: ops.conv_transpose2d(x, drawn(32, 16, 4, 4), None, 2, 1),
    "batch_norm_act": lambda x: normalised(x, True),
    "batch_norm_act in evaluation": lambda x: normalised(x, False),
    "bias_act": lambda x: ops.bias_act(x, torch.arange(32.0) / 16 - 1, "tanh"),
    "discriminator_loss": lambda x: ops.discriminator_loss(x.flatten(), -x.flatten()),
    "generator_loss": lambda x: ops.generator_loss(x.flatten()),
}


def outputs(name: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with ops.backend("cpu"):
        result = CALLS[name](x)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_nothing_records_gives_the_same_bits(extension, name) -> None:
    recorded = outputs(name, drawn(3, 32, 6, 6).requires_grad_())
    with torch.no_grad():
        unrecorded = outputs(name, drawn(3, 32, 6, 6).requires_grad_())
    assert recorded[0].grad_fn is not None
    for ours, theirs in zip(unrecorded, recorded, strict=True):
        assert not ours.requires_grad
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_dispatch_mode_sees_the_operator(extension, name) -> None:
    expected = outputs(name, drawn(3, 32, 6, 6))
    with _Names() as mode:
        found = outputs(name, drawn(3, 32, 6, 6))
    assert any(seen.startswith("fastgan::") for seen in mode.seen)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_take_the_fake_kernel(extension, name) -> None:
    expected = outputs(name, drawn(3, 32, 6, 6))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = outputs(name, mode.from_tensor(drawn(3, 32, 6, 6)))
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, FakeTensor)
        assert (ours.shape, ours.dtype, ours.stride()) == (
            theirs.shape, theirs.dtype, theirs.stride(),
        )  # fmt: skip
