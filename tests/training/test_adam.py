"""Fused Adam on weights in channels_last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgan.training.adam import ChannelsLastAdam

SHAPES = [
    (64, 32, 4, 4),
    (7, 3, 5, 3),
    (1, 512, 4, 4),
    (16, 8, 1, 1),
    (64,),
    (10, 20),
    (0, 3, 2, 2),
]
OPTIONS = {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.01, "fused": True}


def weights(layout: torch.memory_format) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(v.contiguous(memory_format=layout) if v.dim() == 4 else v) for v in values]


def gradients(step: int, like: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [
        torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))
        for weight in like
    ]


def trained(
    optimizer: type[torch.optim.Adam], layout: torch.memory_format, **options: bool
) -> tuple[list[nn.Parameter], torch.optim.Adam]:
    mine = weights(layout)
    made = optimizer(mine, **OPTIONS, **options)
    for step in range(5):
        for weight, gradient in zip(mine, gradients(step, mine), strict=True):
            weight.grad = gradient
        made.step()
    return mine, made


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_it_is_torchs_to_the_bit(layout: torch.memory_format, amsgrad: bool) -> None:
    mine, my_optimizer = trained(ChannelsLastAdam, layout, amsgrad=amsgrad)
    theirs, their_optimizer = trained(torch.optim.Adam, layout, amsgrad=amsgrad)
    for weight, expected in zip(mine, theirs, strict=True):
        assert torch.equal(weight, expected)
        assert weight.stride() == expected.stride()
        state, expected_state = my_optimizer.state[weight], their_optimizer.state[expected]
        assert state.keys() == expected_state.keys()
        for key, value in state.items():
            assert torch.equal(value, expected_state[key]), key
            assert value.stride() == expected_state[key].stride(), key


def test_a_gradient_that_lies_otherwise() -> None:
    mine, expected = weights(torch.channels_last), weights(torch.channels_last)
    optimizers = ChannelsLastAdam(mine, **OPTIONS), torch.optim.Adam(expected, **OPTIONS)
    for weight, other, gradient in zip(mine, expected, gradients(0, mine), strict=True):
        weight.grad, other.grad = gradient.contiguous(), gradient
    for optimizer in optimizers:
        optimizer.step()
    for weight, other in zip(mine, expected, strict=True):
        assert torch.equal(weight, other)


def test_weights_without_gradients_are_left_alone() -> None:
    mine = weights(torch.channels_last)
    before = mine[1].detach().clone()
    optimizer = ChannelsLastAdam(mine, **OPTIONS)
    mine[0].grad = torch.ones_like(mine[0])
    optimizer.step()
    assert torch.equal(mine[1], before)
    assert set(optimizer.state) == {mine[0]}
