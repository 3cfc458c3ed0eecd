"""`bench ops`: gated rows for every provider, whatever one of them does."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bench import operators, passes
from bench.grid import OpsOptions, run_ops, run_task, tasks
from bench.operators import BOTH, FORWARD, adversarial_loss, batch_norm_act, bias_act, convolution
from bench.ops import Way, measure_subject, ways_of
from bench.overhead import run_overhead
from bench.own_layer import load_module, parse_shape, run_own_layer
from bench.results import ERROR, FAILED, OK
from bench.shapes import ConvLayer, MapLayer, dcgan_convolutions, step_passes
from fastgan.errors import ConfigError

CPU = torch.device("cpu")
TINY = OpsOptions(
    CPU,
    image_sizes=(16,),
    batch_sizes=(2,),
    precisions=("fp32",),
    others=False,
    compiled=False,
    seconds=0.0,
    width=4,
    tiny=True,
)
LAYER = ConvLayer("4→8 @8²", False, 4, 8, (8, 8))


class WrongGradient(torch.autograd.Function):
    """A convolution whose backward forgets a quarter of the input gradient."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, 2, 1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        gradient = torch.nn.grad.conv2d_input(x.shape, weight, grad, 2, 1)
        gradient[:, :, ::2, ::2] = 0
        return gradient, torch.nn.grad.conv2d_weight(x, weight.shape, grad, 2, 1)


def test_a_deliberately_wrong_kernel_gets_failed_and_no_ratio() -> None:
    subject = convolution(LAYER, 2, torch.float32, CPU)
    wrong = Way("fastgan", True, lambda x, weight: {"y": F.conv2d(x, weight, None, 2, 1) * 1.01})
    rows = measure_subject(subject, [wrong, *_eager(subject)], {}, seconds=0.0)
    for row in rows:
        if row.provider == "fastgan":
            assert row.status == FAILED
            assert row.ratio is None
            assert row.median is None
            assert "is wrong" in row.message
        else:
            assert row.status == OK
            assert row.ratio


def test_a_kernel_wrong_only_in_its_backward_passes_forward_alone() -> None:
    subject = convolution(LAYER, 2, torch.float32, CPU)
    wrong = Way("fastgan", True, lambda x, weight: {"y": WrongGradient.apply(x, weight)})
    rows = measure_subject(subject, [wrong, *_eager(subject)], {}, seconds=0.0)
    status = {row.direction: row.status for row in rows if row.provider == "fastgan"}
    assert status == {FORWARD: OK, BOTH: FAILED}


def test_an_error_in_one_provider_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_arguments, **_keywords):
        raise RuntimeError("kernel launch failed")

    broken = SimpleNamespace(**{**vars(operators.ops), "conv2d": explode})
    monkeypatch.setattr(operators, "ops", broken)
    results = run_ops(dataclasses.replace(TINY, operators=("conv2d", "bias_act")), lambda _: None)
    errors = [row for row in results.rows if row.status == ERROR]
    assert errors
    assert all(row.provider.startswith("fastgan") for row in errors)
    assert all("kernel launch failed" in row.message and row.ratio is None for row in errors)
    assert any(row.case.startswith("bias_act") and row.status == OK for row in results.rows)


def test_inputs_that_cannot_be_built_give_an_error_row() -> None:
    task = next(iter(tasks(TINY)))

    def fail():
        raise MemoryError("out of memory")

    [row] = run_task(dataclasses.replace(task, build=fail), TINY, {})
    assert (row.status, row.provider) == (ERROR, "all")
    assert "out of memory" in row.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "build",
    [
        lambda dtype: convolution(LAYER, 3, dtype, CPU),
        lambda dtype: convolution(ConvLayer("t", True, 8, 3, (4, 4)), 3, dtype, CPU),
        lambda dtype: batch_norm_act(MapLayer("n", 6, (5, 5), "leaky_relu"), 3, dtype, CPU),
        lambda dtype: batch_norm_act(MapLayer("n", 6, (5, 5), "relu"), 3, dtype, CPU),
        lambda dtype: bias_act(MapLayer("b", 6, (5, 5), "tanh"), 3, dtype, CPU),
        lambda dtype: adversarial_loss("discriminator_loss", 7, dtype, CPU),
        lambda dtype: adversarial_loss("generator_loss", 7, dtype, CPU),
    ],
    ids=["conv2d", "conv_transpose2d", "bn-leaky", "bn-relu", "bias_act", "loss-d", "loss-g"],
)
def test_the_gate_lets_every_correct_provider_through(build, dtype: torch.dtype) -> None:
    subject = build(dtype)
    rows = measure_subject(subject, list(ways_of(subject, False)), {}, seconds=0.0, timed=False)
    assert {row.status for row in rows} == {OK}, [row.message for row in rows]
    assert all(row.error is not None and row.error <= (row.tolerance or 0) for row in rows)


def test_gradients_that_arrive_are_as_channels_last_as_the_data() -> None:
    subject = bias_act(MapLayer("b", 6, (5, 5), "leaky_relu"), 3, torch.float32, CPU)
    assert subject.upstream["y"].is_contiguous(memory_format=torch.channels_last)


def test_passes_are_compared_with_the_librarys_own() -> None:
    seen = {}
    for subject, ways in passes.convolution_passes(LAYER, 2, torch.float32, CPU):
        for row in measure_subject(subject, ways, {}, seconds=0.0, directions=(FORWARD,)):
            seen.setdefault(row.case.split()[0], set()).add((row.provider, row.status))
    assert set(seen) == {"fprop", "dgrad", "wgrad"}
    assert all(("oneDNN channels_last", OK) in providers for providers in seen.values())


def test_work_is_that_of_the_published_count() -> None:
    forward = sum(layer.flops(1) for layer in dcgan_convolutions(64) if layer.transposed) / 2e6
    assert forward == pytest.approx(104.63, abs=0.01)
    step = step_passes(64, 1, "bf16")
    assert sum(one.flops for one in step) / 1e9 == pytest.approx(2.275, abs=1e-3)


def test_overhead_has_a_row_for_every_operator() -> None:
    results = run_overhead(CPU, seconds=0.0, report=lambda _: None)
    cases = {row.case.removesuffix(", one call") for row in results.rows if row.status == OK}
    assert {"conv2d", "conv_transpose2d", "batch_norm_act", "bias_act"} <= cases


def test_a_users_own_layer_is_measured_before_and_after_accelerate() -> None:
    name = "torch.nn:Conv2d(3, 4, kernel_size=3)"
    results = run_own_layer(name, "2x3x8x8", CPU, ("fp32",), False, 0.0, 0)
    assert {row.provider for row in results.rows} >= {"eager", "fastgan channels_last"}
    assert {row.status for row in results.rows} == {OK}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.nn", "must look like"),
        ("torch.nn:Conv2d", "cannot be made"),
        ("torch.nn:Conv2d(open)", "cannot be made"),
        ("no.such.package:Layer", "cannot be made"),
        ("torch:float32", "is a dtype, not an nn.Module"),
    ],
)
def test_a_layer_that_cannot_be_had_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_module(name)


def test_shapes_are_read_or_refused() -> None:
    assert parse_shape("64x128x32x32") == (64, 128, 32, 32)
    with pytest.raises(ConfigError, match="64x128x32x32"):
        parse_shape("64 by 3")


def _eager(subject) -> list[Way]:
    return [way for way in ways_of(subject, False) if not way.ours]
