"""The loss kernels against the table of objectives in float64."""

from __future__ import annotations

import math

import pytest
import torch
from conv_cases import DEVICES
from pixel_cases import DTYPES, poisoned_buffers
from tolerances import assert_within, epsilon, smallest

from fastgan.kernels import adversarial_loss
from fastgan.objectives import OBJECTIVES

U = epsilon(torch.float32)
COUNTS = ((1, 1), (5, 64), (1024, 1025), (3000, 7))


def outputs(objective, count, dtype, device, seed):
    """What a discriminator may put out, extremes among it."""
    drawn = 3 * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    if objective.operates_on == "probability":
        drawn = torch.sigmoid(drawn)
        extremes = torch.tensor([0.0, 1.0, 1e-20, 0.999999])
    else:
        extremes = torch.tensor([60.0, -60.0, 0.0, 1.0, -1.0, 1e-4, 0.4999, -0.5])
        if objective.generator(torch.tensor(60.0)).abs() > 1e6 or objective.name == "reverse_kl":
            extremes = extremes.clamp(-8, 8)  # exp(60) would hide everything else
    if count > 8:
        drawn[: len(extremes)] = extremes
    return drawn.to(device, dtype)


def scores(objective, values):
    return torch.sigmoid(values) if objective.score == "sigmoid" else values


def assert_mean(name, actual, terms):
    """A mean in float32: each term errs by some u of itself and of 1, the sum by sqrt(n) u."""
    steps = math.sqrt(terms.numel()) + 16
    assert actual.dtype == torch.float32
    assert_within(name, actual, terms.mean(), steps * U * (terms.abs().mean() + 1))


def assert_gradient(name, actual, logits, derivative):
    """derivative / n: a few roundings of float32 against |derivative| and 1, one of the dtype."""
    expected = derivative / logits.numel()
    assert actual.dtype == logits.dtype
    assert actual.shape == logits.shape
    bound = 16 * U * (expected.abs() + 1 / logits.numel()) + epsilon(actual.dtype) * expected.abs()
    assert_within(name, actual, expected, bound + smallest(actual.dtype))


def check(objective, counts, dtype, device, monkeypatch, labels):
    real, fake = (
        outputs(objective, count, dtype, device, seed) for seed, count in enumerate(counts)
    )
    with poisoned_buffers(monkeypatch):
        loss, real_mean, fake_mean, grad_real, grad_fake = adversarial_loss.discriminator(
            real, fake, objective=objective.name, real_label=labels[0], fake_label=labels[1]
        )
        generator_loss, score, grad = adversarial_loss.generator(fake, objective=objective.name)

    wide_real, wide_fake = real.double(), fake.double()
    costs = objective.real(wide_real, labels[0]), objective.fake(wide_fake, labels[1])
    steps = math.sqrt(max(counts)) + 16
    bound = steps * U * (costs[0].abs().mean() + costs[1].abs().mean() + 1)
    assert_within("loss", loss, costs[0].mean() + costs[1].mean(), bound)
    assert_mean("real_mean", real_mean, scores(objective, wide_real))
    assert_mean("fake_mean", fake_mean, scores(objective, wide_fake))
    derivatives = (
        objective.real_derivative(wide_real, labels[0]),
        objective.fake_derivative(wide_fake, labels[1]),
    )
    assert_gradient("grad_real", grad_real, real, derivatives[0])
    assert_gradient("grad_fake", grad_fake, fake, derivatives[1])
    assert_mean("generator loss", generator_loss, objective.generator(wide_fake))
    assert_mean("score", score, scores(objective, wide_fake))
    assert_gradient("generator gradient", grad, fake, objective.generator_derivative(wide_fake))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name, counts, device, monkeypatch):
    check(OBJECTIVES[name], counts, torch.float32, device, monkeypatch, (1.0, 0.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("labels", [(0.9, 0.1), (0.0, 1.0), (0.7, 0.3)], ids=str)
@pytest.mark.parametrize("name", [n for n, o in OBJECTIVES.items() if o.uses_labels])
def test_smoothed_and_flipped_labels(name, labels, device, monkeypatch):
    check(OBJECTIVES[name], (64, 65), torch.float32, device, monkeypatch, labels)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["non_saturating", "least_squares", "hinge", "jensen_shannon"])
def test_half_precision_logits(name, dtype, device, monkeypatch):
    check(OBJECTIVES[name], (64, 65), dtype, device, monkeypatch, (1.0, 0.0))


def test_every_objective_is_served_with_its_score():
    assert {name: one.score for name, one in OBJECTIVES.items()} == adversarial_loss.SCORES


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_are_kept(device):
    real = torch.randn(2, 1, 3, 5, device=device)
    fake = torch.randn(4, device=device)
    *_, grad_real, grad_fake = adversarial_loss.discriminator(
        real, fake, objective="hinge", real_label=1.0, fake_label=0.0
    )
    assert grad_real.shape == real.shape
    assert grad_fake.shape == fake.shape


@pytest.mark.parametrize("device", DEVICES)
def test_mean_of_nothing_is_nan(device):
    empty, fake = torch.empty(0, device=device), torch.zeros(3, device=device)
    loss, real_mean, fake_mean, grad_real, _ = adversarial_loss.discriminator(
        empty, fake, objective="non_saturating", real_label=1.0, fake_label=0.0
    )
    assert loss.isnan()
    assert real_mean.isnan()
    assert fake_mean == 0.5
    assert grad_real.shape == (0,)
    loss, score, _ = adversarial_loss.generator(empty, objective="non_saturating")
    assert loss.isnan()
    assert score.isnan()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["non_saturating", "bce"])
def test_nan_spreads(name, device):
    fake = torch.tensor([0.5, math.nan, 0.25], device=device)
    loss, score, grad = adversarial_loss.generator(fake, objective=name)
    assert loss.isnan()
    assert score.isnan()
    assert grad.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["non_saturating", "squared_hellinger"])
def test_small_losses_keep_their_digits(name, device):
    logit = {"non_saturating": 20.0, "squared_hellinger": 1e-5}[name]
    logits = torch.full((64,), logit, device=device)
    loss, *_ = adversarial_loss.generator(logits, objective=name)
    exact = OBJECTIVES[name].generator(logits.double()).mean()
    assert_within("loss", loss, exact, 32 * U * exact.abs())


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_from_run_to_run(device):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(device)
    first, second = (adversarial_loss.generator(logits, objective="minimax") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
