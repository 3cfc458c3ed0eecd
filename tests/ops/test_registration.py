"""The operators in torch's machinery: opcheck, torch.compile, autocast, version counters."""

from __future__ import annotations

import pytest
import torch
from drawn import DEVICES
from torch.nn import functional as F

from fastgan import ops
from fastgan.ops.library import OPERATORS

IMPLEMENTATIONS = ["reference", "triton"]


def samples(device, implementation):
    """One call of each registered operator, by name."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        data = torch.randn(shape, generator=generator).to(device)
        return data.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else data

    big, small, weight, bias = random(2, 3, 5, 6), random(2, 4, 2, 6), random(4, 3, 4, 3), random(4)
    stride, padding = [2, 1], [1, 1]
    epilogue = ("leaky_relu", 0.2)
    x, mean, var = random(4, 3, 2, 3), random(3), random(3).exp()
    statistics = random(2, 3), random(2, 3).exp()
    logits = random(5), random(7)
    calls = {
        "conv_fprop": (big, weight, bias, stride, padding, *epilogue),
        "conv_dgrad": (small, weight, None, [5, 6], stride, padding, *epilogue),
        "conv_wgrad": (big, small, [4, 3], stride, padding, torch.float32),
        "batch_norm_act_training": (x, mean, var, mean + 0, mean + 1, 0.1, 1e-5, *epilogue, 2),
        "batch_norm_act_inference": (x, mean, var, None, None, 1e-5, *epilogue),
        "batch_norm_act_backward": (
            x, x + 1, *statistics, mean, mean + 1, 1e-5, *epilogue, 2, True,
        ),
        "bias_act": (x, mean, *epilogue),
        "bias_act_backward": (x, x + 1, mean, *epilogue),
        "discriminator_loss": (*logits, "hinge", 1.0, 0.0),
        "generator_loss": (logits[0], "non_saturating"),
        "image_batch": (
            torch.arange(180, dtype=torch.uint8, device=device).view(3, 4, 5, 3),
            torch.tensor([2, 0], device=device),
            torch.tensor([True, False], device=device),
            torch.bfloat16,
        ),
    }  # fmt: skip
    return {name: (*arguments, implementation) for name, arguments in calls.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_opcheck(name, implementation, device):
    arguments = samples(device, implementation)[name]
    torch.library.opcheck(OPERATORS[name], arguments)


def chain(x, w, b, scale, shift, running_mean, running_var):
    """Every operator once."""
    y = ops.conv2d(x, w, b, 2, 1, activation="leaky_relu", negative_slope=0.2)
    z = ops.conv_transpose2d(y, w, None, 2, 1)
    u = ops.batch_norm_act(
        z, running_mean, running_var, scale, shift, True, activation="relu", stat_groups=2
    )
    v = ops.bias_act(u, shift, "sigmoid")
    loss, score, _ = ops.discriminator_loss(v, 2 * v)
    return loss + ops.generator_loss(v, "hinge")[0], score


def chain_inputs(device):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device)

    leaves = random(2, 3, 8, 8), random(5, 3, 4, 4), random(5), random(3).abs(), random(3)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    return leaves, (torch.zeros(3, device=device), torch.ones(3, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_compile_is_whole_equal_and_compiles_once(backend, device):
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    with ops.backend(backend):
        for attempt in range(3):
            results = []
            for function in (chain, compiled):
                leaves, running = chain_inputs(device)
                with torch._dynamo.config.patch(error_on_recompile=attempt > 0):
                    loss, score = function(*leaves, *running)
                gradients = torch.autograd.grad(loss, leaves)
                results.append((loss, score, *running, *gradients))
            for eager, traced in zip(*results, strict=True):
                torch.testing.assert_close(traced, eager)


def test_compile_sees_another_backend():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: ops.conv2d(x, w), fullgraph=True, backend="aot_eager")
    x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    with ops.backend("reference"):
        compiled(x, w)
    with ops.backend("matmul"), pytest.raises(Exception, match="matrix product"):
        compiled(x, w)


@pytest.mark.parametrize("backend", ["reference", "triton", "matmul"])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_autocast_like_the_twin(transposed, backend):
    x = torch.randn(2, 4, 1, 1) if transposed else torch.randn(2, 3, 4, 4)
    x.requires_grad_()
    w, b = torch.randn(4, 3, 4, 4, requires_grad=True), torch.randn(3 if transposed else 4)
    b.requires_grad_()
    ours, twin = (
        (ops.conv_transpose2d, F.conv_transpose2d) if transposed else (ops.conv2d, F.conv2d)
    )
    results = []
    for function in (twin, ours):
        with torch.autocast("cpu", torch.bfloat16), ops.backend(backend):
            y = function(x, w, b)
        gradients = torch.autograd.grad(y.float().square().sum(), (x, w, b))
        results.append((y, *gradients))
    for name, twins, our in zip(["y", "dx", "dw", "db"], *results, strict=True):
        assert our.dtype == twins.dtype, name
        # bfloat16 on both sides, of sums of up to 48 products.
        torch.testing.assert_close(our, twins, rtol=0.05, atol=0.05 * twins.abs().max().item())


def test_running_statistics_tell_autograd_that_they_changed():
    x, mean, var = torch.randn(4, 3, 2, 2), torch.zeros(3), torch.ones(3)
    with ops.backend("triton"):
        ops.batch_norm_act(x, mean, var, training=True)
    assert mean._version > 0
    assert var._version > 0


def test_running_statistics_may_move_between_an_eval_forward_and_its_backward():
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)
    with ops.backend("triton"):
        y = ops.batch_norm_act(x, mean, var, training=False, eps=0.0)
        ops.batch_norm_act(x.detach() * 9, mean, var, training=True)
        y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
def test_deterministic_from_run_to_run(backend):
    leaves, _ = chain_inputs("cpu")
    runs = []
    for _ in range(2):
        with ops.backend(backend):
            loss, _ = chain(*leaves, torch.zeros(3), torch.ones(3))
        runs.append(torch.autograd.grad(loss, leaves))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
