"""Weights in kernel layout: never out of date, and not made more often than needed."""

from __future__ import annotations

import copy

import pytest
import torch

from fastgan import ops
from fastgan.ops import packing
from fastgan.ops.packing import PackedWeights, pack, packed


def fresh():
    return torch.nn.Parameter(torch.randn(4, 3, 2, 2))


def with_adam(weight, **options):
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.1, **options).step()


def load(weight):
    layer = torch.nn.Conv2d(3, 4, 2, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.randn(4, 3, 2, 2)})


def in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


CHANGES = {
    "in place": in_place,
    "through data": lambda w: w.data.mul_(2),
    "data assigned": lambda w: setattr(w, "data", torch.randn(4, 3, 2, 2)),
    "set_": lambda w: w.data.set_(torch.randn(4, 3, 2, 2)),
    "Adam": lambda w: with_adam(w, foreach=False),
    "foreach Adam": lambda w: with_adam(w, foreach=True),
    "fused Adam": lambda w: with_adam(w, fused=True),
    "load_state_dict": load,
}
#: Changes that leave no trace in a tensor: only its owner knows (and says so by `refresh`).
UNSEEN = {"through data", "fused Adam"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_is_packed_as_it_is_now(change):
    weight = fresh()
    packed(weight, torch.bfloat16)
    CHANGES[change](weight)
    assert torch.equal(packed(weight, torch.bfloat16), weight.detach().bfloat16())


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_copy_is_passed_over_after_a_change_that_shows(change):
    weight = fresh()
    with PackedWeights([weight], torch.bfloat16) as copies:
        kept = packed(weight, torch.bfloat16)
        assert packed(weight, torch.bfloat16) is kept
        CHANGES[change](weight)
        if change not in UNSEEN:
            assert torch.equal(packed(weight, torch.bfloat16), weight.detach().bfloat16())
        copies.refresh()
        again = packed(weight, torch.bfloat16)
        assert again.data_ptr() == kept.data_ptr()  # the address that a captured graph knows
        assert torch.equal(again, weight.detach().bfloat16())
    assert packed(weight, torch.bfloat16) is not kept


def test_kept_copies_serve_their_own_weight_and_dtype_alone():
    weight = fresh()
    with PackedWeights([weight, torch.nn.Parameter(torch.randn(3))], torch.bfloat16):
        assert packed(weight, torch.float16).dtype == torch.float16
        twin = copy.deepcopy(weight)
        assert packed(twin, torch.bfloat16) is not packed(weight, torch.bfloat16)
    assert id(weight) not in packing._kept


def test_a_weight_that_is_in_kernel_layout_is_not_copied():
    weight = fresh().detach().to(torch.bfloat16, memory_format=torch.channels_last)
    assert packed(weight, torch.bfloat16).data_ptr() == weight.data_ptr()
    assert pack(fresh(), torch.float16).is_contiguous(memory_format=torch.channels_last)


def test_inference_tensors_are_packed():
    with torch.inference_mode():
        weight = torch.randn(4, 3, 2, 2)
        assert packed(weight, torch.bfloat16).dtype == torch.bfloat16
        with PackedWeights([weight], torch.bfloat16):
            assert torch.equal(packed(weight, torch.bfloat16), weight.bfloat16())


def test_a_convolution_packs_once_for_forward_and_backward(monkeypatch):
    from fastgan.ops import packing as module

    count = []
    monkeypatch.setattr(module, "pack", lambda w, dtype: count.append(1) or pack(w, dtype))
    weight = fresh()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with ops.backend("triton"):
        ops.conv2d(x, weight).sum().backward()
    assert len(count) == 1


def test_training_with_fused_adam_moves_the_output():
    weight, x = fresh(), torch.randn(2, 3, 4, 4)
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    with ops.backend("triton"):
        outputs = []
        for _ in range(2):
            y = ops.conv2d(x, weight)
            outputs.append(y)
            y.square().sum().backward()
            optimizer.step()
    assert not torch.allclose(outputs[0], outputs[1])
