"""Weights in kernel layout: never out of date, and not made more often than needed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of so many elements or more."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        big = operator is torch.ops.aten._to_copy.default and arguments[0].numel() >= self.size
        self.count += big
        return operator(*arguments, **(options or {}))


#: x, weight, operator: products of a generator's stem and a discriminator's head.
PRODUCTS = {
    "stem": ((5, 6, 1, 1), (6, 8, 4, 4), ops.conv_transpose2d),
    "head": ((5, 8, 4, 4), (3, 8, 4, 4), ops.conv2d),
}


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_reads_the_kept_copy_and_is_differentiated_twice_as_without(name, layout):
    x_shape, weight_shape, operator = PRODUCTS[name]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(x_shape, generator=generator).to(memory_format=layout).requires_grad_()
    weight = torch.randn(weight_shape, generator=generator).to(memory_format=layout)
    weight.requires_grad_()

    def results():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Casts(300) as casts:
            y = operator(x, weight)
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        batched = torch.autograd.grad(
            y, weight, torch.stack((torch.ones_like(y), y.detach())), True, is_grads_batched=True
        )
        return [y, *first, *torch.autograd.grad(penalty, (x, weight)), *batched], casts.count

    expected, casts = results()
    with PackedWeights([weight], torch.bfloat16):
        actual, fewer = results()
        with torch.autocast("cpu", torch.bfloat16):
            _, tangent = torch.func.jvp(lambda w: operator(x.detach(), w), (weight,), (weight,))
    # The gradients of a weight lie as it does: a copy that lies otherwise is passed over.
    assert fewer == casts - (layout is torch.channels_last)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    assert torch.equal(tangent, expected[0])  # linear in the weight


def test_a_product_recorded_before_a_refresh_refuses_to_go_back_with_the_weight_after_it():
    x = torch.randn(5, 6, 1, 1, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(6, 8, 4, 4).to(memory_format=torch.channels_last))
    with PackedWeights([weight], torch.bfloat16) as copies:
        with torch.autocast("cpu", torch.bfloat16):
            y = ops.conv_transpose2d(x, weight)
        copies.refresh()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
