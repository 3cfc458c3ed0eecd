"""Batch norm + activation kernels against float64 torch: every variant, activation and dtype."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from batch_norm_cases import CASES, EPS, MOMENTUM, Case, Exact, U, output_bound
from conv_cases import DEVICES
from pixel_cases import ACTIVATED, DTYPES, SLOPE, channel_vector, channels_last, poisoned_buffers
from tolerances import assert_within, epsilon, smallest
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels import batch_norm_act, batch_norm_act_backward, batch_norm_act_forward
from fastgan.kernels.batch_norm_act_statistics import TABLES
from fastgan.kernels.channels_last import Tile, cut

# "two_pass, small tiles" cuts even small tensors into many ranges of rows and blocks of columns,
# and merges their partial results four at a time.
VARIANTS = ("resident", "two_pass", "two_pass, small tiles")


def choose(variant: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The launcher's `variant`, with small tiles in the tables if the name says so."""
    if variant.endswith("small tiles"):
        tiles = {2: Tile(32, 16, 4), 4: Tile(16, 16, 4)}
        for name, table in TABLES.items():
            small = dataclasses.replace(table, streaming=tiles, programs=12)
            monkeypatch.setitem(TABLES, name, small)
        for module in (batch_norm_act_forward, batch_norm_act_backward):
            monkeypatch.setattr(module, "BLOCK_S", 4)
    return variant.partition(",")[0]


def run_training(case, dtype, device, monkeypatch, variant, activation, affine=True):
    x = case.tensor(dtype, device)
    weight = channel_vector(case.c, device, 1) if affine else None
    bias = channel_vector(case.c, device, 2) if affine else None
    running = [torch.full((case.c,), value, device=device) for value in (0.3, 1.2)]
    with poisoned_buffers(monkeypatch):
        result = batch_norm_act.forward_training(
            x,
            *running,
            weight,
            bias,
            momentum=MOMENTUM,
            eps=EPS,
            activation=activation,
            negative_slope=SLOPE,
            stat_groups=case.groups,
            variant=choose(variant, monkeypatch),
        )
    return Exact(x, case.groups, weight, bias), running, result


def check_training(case, dtype, device, monkeypatch, variant, activation, affine=True):
    exact, running, (y, mean, invstd) = run_training(
        case, dtype, device, monkeypatch, variant, activation, affine
    )
    _, z, z_error = exact.z()
    expected = ACTIVATED[activation](z)
    assert y.dtype == dtype
    assert y.stride() == exact.x.stride()
    assert_within("mean", mean, exact.mean, exact.mean_error)
    assert_within("invstd", invstd, exact.invstd, exact.invstd_error)
    assert_within("y", y, expected, output_bound(expected, z_error, dtype))
    kept = [torch.full_like(exact.mean[0], value) for value in (0.3, 1.2)]
    for mean_of_group, variance in zip(exact.mean, exact.unbiased, strict=True):
        kept = [
            (1 - MOMENTUM) * old + MOMENTUM * new
            for old, new in zip(kept, (mean_of_group, variance), strict=True)
        ]
    bounds = exact.mean_error, exact.steps * U * exact.unbiased
    for name, result, expected, bound in zip(
        ("running_mean", "running_var"), running, kept, bounds, strict=True
    ):
        assert_within(name, result, expected, bound.amax(0) + 4 * case.groups * U * (1.2 + kept[1]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_forward(case, variant, device, monkeypatch):
    check_training(case, torch.float32, device, monkeypatch, variant, "leaky_relu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS[:2])
@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_forward_dtypes_and_activations(dtype, activation, variant, device, monkeypatch):
    check_training(CASES[6], dtype, device, monkeypatch, variant, activation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_weight_and_bias(variant, device, monkeypatch):
    check_training(CASES[1], torch.float32, device, monkeypatch, variant, "relu", affine=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [3, 32])
def test_large_offsets_cost_no_more_than_the_mean_is_rounded(
    channels, variant, device, monkeypatch
):
    case = Case(4, channels, 12, 10, groups=2, mean=1e4, spread=1.0)
    exact, _, (_, _, invstd) = run_training(
        case, torch.float32, device, monkeypatch, variant, "identity"
    )
    # The deviations themselves are exact: no digit of the variance is lost.
    assert_within("invstd", invstd, exact.invstd, exact.invstd_error)
    check_training(case, torch.float32, device, monkeypatch, variant, "identity")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_constant_channels_have_variance_zero(variant, device, monkeypatch):
    case = Case(4, 16, 6, 5, mean=7.7, spread=0.0)
    _, _, (y, _, invstd) = run_training(
        case, torch.float32, device, monkeypatch, variant, "identity", affine=False
    )
    assert_within("invstd", invstd, torch.full_like(invstd, EPS**-0.5), 8 * U * EPS**-0.5)
    assert_within("y", y, torch.zeros_like(y), 2 * U * 7.7 * EPS**-0.5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_inference_forward(case, dtype, activation, device, monkeypatch):
    x = case.tensor(dtype, device)
    mean, weight, bias = (channel_vector(case.c, device, seed) for seed in (3, 1, 2))
    var = channel_vector(case.c, device, 4).square() + 0.1
    with poisoned_buffers(monkeypatch):
        y = batch_norm_act.forward_inference(
            x, mean, var, weight, bias, eps=EPS, activation=activation, negative_slope=SLOPE
        )
    wide = [tensor.double() for tensor in (x, mean, var, weight, bias)]
    z = F.batch_norm(*wide, training=False, eps=EPS)
    magnitude = (x.double().abs() + wide[1].abs()[:, None, None]) * (
        wide[3].abs() / (wide[2] + EPS).sqrt()
    )[:, None, None]
    z_error = 8 * U * (magnitude + wide[4].abs()[:, None, None])
    expected = ACTIVATED[activation](z)
    assert y.dtype == dtype
    assert_within("y", y, expected, output_bound(expected, z_error, dtype))


def check_backward(case, dtype, device, monkeypatch, variant, activation, training=True):
    x = case.tensor(dtype, device)
    weight, bias = (channel_vector(case.c, device, seed) for seed in (1, 2))
    exact = Exact(x, case.groups if training else 1, weight, bias)
    normal, z, z_error = exact.z()
    grad_y = channels_last(x.shape, dtype, device, seed=9)
    # A pre-activation that rounding may push over the kink has no gradient to compare.
    grad_y = torch.where(z.abs() <= z_error, 0, grad_y).to(dtype)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    with poisoned_buffers(monkeypatch):
        grad_x, grad_weight, grad_bias = batch_norm_act.backward(
            grad_y,
            x,
            exact.mean.float(),
            exact.invstd.float(),
            weight,
            bias,
            activation=activation,
            negative_slope=SLOPE,
            stat_groups=case.groups,
            training=training,
            variant=choose(variant, monkeypatch),
        )

    leaf = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    if training:
        parts = leaf[0].chunk(case.groups)
        y = torch.cat([F.batch_norm(part, None, None, *leaf[1:], True, 0.0, EPS) for part in parts])
    else:
        y = F.batch_norm(leaf[0], exact.mean[0], exact.var[0], *leaf[1:], False, 0.0, EPS)
    expected = torch.autograd.grad(ACTIVATED[activation](y), leaf, grad_y.double())

    # dz and what it may err by; then the two sums; then dx, term by term.
    start = z.clone().requires_grad_()
    (dz,) = torch.autograd.grad(ACTIVATED[activation](start), start, grad_y.double())
    dz_error = 8 * U * dz.abs()
    if activation in ("tanh", "sigmoid"):
        dz_error = dz_error + grad_y.double().abs() * (z_error + 8 * U)
    normal_error = exact.normal_error(normal)

    def total(tensor: Tensor) -> Tensor:
        return tensor.reshape(exact.groups, -1, *x.shape[1:]).sum((1, 3, 4))

    bias_error = total(dz_error) + exact.steps * U * total(dz.abs())
    weight_error = total(dz_error * normal.abs() + dz.abs() * normal_error)
    weight_error = weight_error + exact.steps * U * total((dz * normal).abs())
    assert_within("grad_bias", grad_bias, expected[2], 2 * bias_error.sum(0))
    assert_within("grad_weight", grad_weight, expected[1], 2 * weight_error.sum(0))

    inner = dz_error + exact.steps * U * dz.abs()
    if training:
        shares = [total(part) / exact.rows for part in (dz.abs(), (dz * normal).abs())]
        shares += [bias_error / exact.rows, weight_error / exact.rows]
        own, own_normal, error, error_normal = (exact.everywhere(share) for share in shares)
        inner = inner + error + exact.steps * U * own
        inner = inner + normal.abs() * (error_normal + exact.steps * U * own_normal)
        inner = inner + normal_error * own_normal
    bound = (weight.double().abs()[:, None, None] * exact.everywhere(exact.invstd)) * inner
    bound = bound + epsilon(dtype) * expected[0].abs() + smallest(dtype)
    assert grad_x.dtype == dtype
    assert grad_x.stride() == x.stride()
    assert_within("grad_x", grad_x, expected[0], bound)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_backward(case, variant, device, monkeypatch):
    check_backward(case, torch.float32, device, monkeypatch, variant, "leaky_relu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS[:2])
@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_backward_dtypes_and_activations(dtype, activation, variant, device, monkeypatch):
    check_backward(CASES[6], dtype, device, monkeypatch, variant, activation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS[1:])
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]], ids=str)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_inference_backward(case, variant, activation, device, monkeypatch):
    check_backward(case, torch.float32, device, monkeypatch, variant, activation, training=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bits_from_run_to_run(variant, device, monkeypatch):
    results = []
    for _ in range(2):
        exact, running, (y, mean, invstd) = run_training(
            CASES[6], torch.bfloat16, device, monkeypatch, variant, "relu"
        )
        settings = {"activation": "relu", "negative_slope": SLOPE, "stat_groups": exact.groups}
        gradients = batch_norm_act.backward(
            y, exact.x, mean, invstd, exact.weight, exact.bias, **settings,
            training=True, variant=choose(variant, monkeypatch),
        )  # fmt: skip
        results.append([y, mean, invstd, *running, *gradients])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device):
    x = torch.empty(0, 5, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    running = torch.ones(5, device=device)
    settings = {"activation": "relu", "negative_slope": SLOPE}
    y, mean, invstd = batch_norm_act.forward_training(
        x, running, running, None, None, momentum=MOMENTUM, eps=EPS, stat_groups=2, **settings
    )
    assert y.shape == x.shape
    assert torch.equal(running, torch.ones_like(running))
    assert batch_norm_act.forward_inference(
        x, running, running, None, None, eps=EPS, **settings
    ).shape == (0, 5, 4, 4)
    grad_x, grad_weight, grad_bias = batch_norm_act.backward(
        y, x, mean, invstd, None, None, stat_groups=2, training=True, **settings
    )
    assert grad_x.shape == x.shape
    assert not grad_weight.any()
    assert not grad_bias.any()


def test_resident_says_when_a_group_is_too_tall():
    x = channels_last((1, 1, 65, 64), torch.float32, "cpu", seed=0)
    with pytest.raises(ValueError, match=r"resident.*4160 rows"):
        batch_norm_act.forward_training(
            x, None, None, None, None, momentum=MOMENTUM, eps=EPS, activation="relu",
            negative_slope=SLOPE, stat_groups=1, variant="resident",
        )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 7, 64, 1000, 131072])
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 64, 512])
@pytest.mark.parametrize("groups", [1, 2])
def test_cuts_cover_every_row_once(rows, channels, groups):
    for table in TABLES.values():
        for tile in table.streaming.values():
            plan = cut(tile, table.programs, rows, channels, groups)
            assert plan.rows * plan.fold == rows
            assert plan.columns == channels * plan.fold
            assert (plan.splits - 1) * plan.rows_per_split < plan.rows
            assert plan.splits * plan.rows_per_split >= plan.rows
            assert plan.column_blocks * tile.columns >= plan.columns


@pytest.mark.gpu
def test_more_elements_than_32_bits_count():
    x = torch.randn(16, 64, 64, 64, device="cuda", dtype=torch.bfloat16)
    x = x.repeat(513, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    assert x.numel() > 2**31
    settings = {"activation": "relu", "negative_slope": SLOPE}
    y, mean, invstd = batch_norm_act.forward_training(
        x, None, None, None, None, momentum=MOMENTUM, eps=EPS, stat_groups=1, **settings
    )
    # The batch repeats itself, so its statistics are those of one repetition, and so is y.
    assert_within("mean", mean, x[:16].double().mean((0, 2, 3))[None], 1e3 * U)
    assert torch.equal(y[-16:], y[:16])
    grad_x, *_ = batch_norm_act.backward(
        y, x, mean, invstd, None, None, stat_groups=1, training=True, **settings
    )
    assert torch.equal(grad_x[-16:], grad_x[:16])
