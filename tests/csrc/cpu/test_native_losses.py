"""The adversarial losses at every level against the table of objectives in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import DTYPES, U
from tolerances import assert_within, epsilon

from fastgan import native_kernels
from fastgan.objectives import OBJECTIVES

counts = st.sampled_from([1, 2, 5, 16, 63, 64, 65, 1000, 1023, 1024, 1025, 2500])


def outputs(objective, count: int, dtype: torch.dtype, seed: int, spread: float):
    drawn = spread * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    if objective.operates_on == "probability":
        drawn = torch.sigmoid(drawn).clamp(0.01, 0.98)  # float16 holds the gradients of these
    return drawn.to(dtype)


def score(objective, values):
    return torch.sigmoid(values) if objective.score == "sigmoid" else values


def check_mean(name, actual, values, sizes) -> None:
    """A mean of float32 values: 1024 in each of a task's lanes at most, then float64."""
    assert_within(name, actual, values.mean(), 128 * U * sizes.mean() + 1e-30)


def check_gradient(name, actual, slopes, outputs_of, dtype) -> None:
    exact = slopes / slopes.numel()
    size = (slopes.abs() + 1 + outputs_of.abs()) / slopes.numel()
    bound = 32 * U * size + epsilon(dtype) * exact.abs() + torch.finfo(dtype).smallest_normal
    assert_within(name, actual, exact, bound)


@settings(max_examples=500)
@given(
    name=st.sampled_from(sorted(OBJECTIVES)),
    real_count=counts,
    fake_count=counts,
    dtype=st.sampled_from(DTYPES),
    labels=st.sampled_from([(1.0, 0.0), (0.9, 0.1), (0.7, 0.3)]),
    spread=st.sampled_from([0.01, 1.0, 3.0]),
)
def test_losses_are_exact_up_to_rounding(
    level, name, real_count, fake_count, dtype, labels, spread
) -> None:
    objective = OBJECTIVES[name]
    real_label, fake_label = labels if objective.uses_labels else (1.0, 0.0)
    real = outputs(objective, real_count, dtype, 1, spread)
    fake = outputs(objective, fake_count, dtype, 2, spread)
    r, f = real.double(), fake.double()
    # The labels reach the kernel as float32.
    real_label, fake_label = (float(torch.tensor(v).float()) for v in (real_label, fake_label))

    loss, real_mean, fake_mean, grad_real, grad_fake = native_kernels.discriminator(
        real, fake, objective=name, real_label=real_label, fake_label=fake_label
    )
    costs = objective.real(r, real_label), objective.fake(f, fake_label)
    sizes = sum((cost.abs() + t.abs() + 1).mean() for cost, t in zip(costs, (r, f), strict=True))
    assert_within("loss", loss, costs[0].mean() + costs[1].mean(), 128 * U * sizes)
    check_mean("D(x)", real_mean, score(objective, r), score(objective, r).abs())
    check_mean("D(G(z))", fake_mean, score(objective, f), score(objective, f).abs())
    check_gradient("grad_real", grad_real, objective.real_derivative(r, real_label), r, dtype)
    check_gradient("grad_fake", grad_fake, objective.fake_derivative(f, fake_label), f, dtype)

    loss, fake_mean, grad_fake = native_kernels.generator(fake, objective=name)
    cost = objective.generator(f)
    assert_within("loss", loss, cost.mean(), 128 * U * (cost.abs() + f.abs() + 1).mean())
    check_mean("D(G(z))", fake_mean, score(objective, f), score(objective, f).abs())
    check_gradient("grad_fake", grad_fake, objective.generator_derivative(f), f, dtype)


def test_the_objectives_stand_in_the_table_s_order() -> None:
    assert list(native_kernels.OBJECTIVES) == list(OBJECTIVES)
    assert list(native_kernels.OBJECTIVES.values()) == list(range(len(OBJECTIVES)))


def test_certain_probabilities_cost_what_torch_says(level) -> None:
    probabilities = torch.tensor([0.0, 1.0, 1e-20, 1.0 - 2**-24])
    labels = torch.ones(4)
    exact = probabilities.double().requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy(exact, labels.double())
    expected.backward()
    loss, _, gradient = native_kernels.generator(probabilities, objective="bce")
    assert_within("loss", loss, expected, 128 * U * expected.abs())
    assert_within("gradient", gradient, exact.grad, 32 * U * exact.grad.abs())


def test_the_mean_of_nothing_is_nan(level) -> None:
    loss, fake_mean, gradient = native_kernels.generator(torch.empty(0), objective="hinge")
    assert loss.isnan()
    assert fake_mean.isnan()
    assert gradient.shape == (0,)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_large_logits_stay_finite_where_the_exact_loss_is(level, name) -> None:
    objective = OBJECTIVES[name]
    if objective.operates_on == "probability":
        return
    values = torch.tensor([60.0, -60.0, 20.0, -20.0, 0.0])
    cost, slope = objective.generator(values.double()), objective.generator_derivative(values)
    loss, _, gradient = native_kernels.generator(values, objective=name)
    assert_within("loss", loss, cost.mean(), 128 * U * (cost.abs() + 61).mean())
    assert gradient.isfinite().all() == slope.isfinite().all()
