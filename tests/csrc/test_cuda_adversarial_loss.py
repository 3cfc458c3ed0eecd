"""The losses in CUDA against the formulas of fastgan.objectives in float64, thread by thread."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import DTYPES, Library, pointer, rounding_error
from torch import Tensor

from fastgan.objectives import OBJECTIVES, Objective


class Loss(ctypes.Structure):
    """csrc/cuda/kernels.h: AdversarialLoss."""

    _fields_ = (
        ("type", c_int),
        ("objective", c_int),
        ("real_count", c_int64),
        ("fake_count", c_int64),
        *((name, c_void_p) for name in ("real", "fake", "grad_real", "grad_fake", "results")),
        ("real_label", c_float),
        ("fake_label", c_float),
    )


@dataclass(frozen=True)
class Case:
    """A drawn call: the objective, how many outputs, and in which thread order."""

    objective: str
    generator: bool
    real_count: int
    fake_count: int
    dtype: torch.dtype
    labels: tuple[float, float]
    seed: int
    order: int = 0

    def outputs(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [
            torch.randn(count, generator=generator) * 3
            for count in (self.real_count, self.fake_count)
        ]
        if OBJECTIVES[self.objective].operates_on == "probability":
            drawn = [values.sigmoid().clamp(0.01, 0.99) for values in drawn]
        return drawn[0].to(self.dtype), drawn[1].to(self.dtype)


CASES = st.builds(
    Case,
    objective=st.sampled_from(list(OBJECTIVES)),
    generator=st.booleans(),
    real_count=st.one_of(st.integers(1, 40), st.integers(500, 1300)),
    fake_count=st.one_of(st.integers(1, 40), st.integers(500, 1300)),
    dtype=st.sampled_from(list(DTYPES)),
    labels=st.sampled_from([(1.0, 0.0), (0.9, 0.1)]),
    seed=st.integers(0, 2**32),
    order=st.integers(0, 2**32),
)


def run(simt: Library, case: Case) -> dict[str, Tensor]:
    simt.seed(case.order)
    real, fake = map(simt.copy, case.outputs())
    tensors = {
        "grad_real": simt.empty(real.shape, case.dtype),
        "grad_fake": simt.empty(fake.shape, case.dtype),
        "results": simt.empty((2 if case.generator else 3,)),
    }
    call = Loss(
        DTYPES[case.dtype], list(OBJECTIVES).index(case.objective),
        -1 if case.generator else case.real_count, case.fake_count, pointer(real), pointer(fake),
        *(pointer(tensors[name]) for name in ("grad_real", "grad_fake", "results")), *case.labels,
    )  # fmt: skip
    simt.run("adversarial_loss", call)
    return tensors


def expected(case: Case, objective: Objective) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the costs, the gradients of their mean and the scores: one of each a batch."""
    real, fake = (values.double() for values in case.outputs())
    if case.generator:
        batches = [(fake, objective.generator(fake), objective.generator_derivative(fake))]
    else:
        label, other = (torch.tensor(label).item() for label in case.labels)
        batches = [
            (real, objective.real(real, label), objective.real_derivative(real, label)),
            (fake, objective.fake(fake, other), objective.fake_derivative(fake, other)),
        ]
    scores = [t.sigmoid() if objective.score == "sigmoid" else t for t, _, _ in batches]
    return (
        [cost for _, cost, _ in batches],
        [slope / len(slope) for _, _, slope in batches],
        scores,
    )


def check(simt: Library, case: Case) -> None:
    got = run(simt, case)
    costs, gradients, scores = expected(case, OBJECTIVES[case.objective])
    single = rounding_error(torch.float32, 16)
    wanted = [sum(cost.mean() for cost in costs), *(score.mean() for score in scores)]
    sizes = [sum(1 + cost.abs().mean() for cost in costs), *(1 + s.abs().mean() for s in scores)]
    for result, value, size in zip(got["results"].double(), wanted, sizes, strict=True):
        assert abs(result - value) <= single * size
    names = ["grad_fake"] if case.generator else ["grad_real", "grad_fake"]
    for name, gradient in zip(names, gradients, strict=True):
        bound = (single + rounding_error(case.dtype, 1)) * gradient.abs()
        bound = bound + single / len(gradient) + 2.0**-24  # near 0, and the smallest float16
        assert ((got[name].double() - gradient).abs() <= bound).all()


@settings(max_examples=150)
@given(case=CASES)
def test_losses_agree_with_float64(shim_library: Library, case: Case) -> None:
    check(shim_library, case)
    shim_library.release()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("generator", [False, True])
def test_every_objective_and_role(simt: Library, objective: str, generator: bool) -> None:
    check(simt, Case(objective, generator, 33, 65, torch.float32, (1.0, 0.0), 7))


def test_bce_of_certain_outputs_is_clamped_as_torch_clamps_it(simt: Library) -> None:
    probability = simt.copy(torch.tensor([0.0, 1.0, 0.5]))
    gradient, results = simt.empty((3,)), simt.empty((2,))
    call = Loss(0, 0, -1, 3, None, pointer(probability), None, pointer(gradient), pointer(results))
    simt.run("adversarial_loss", call)
    leaf = probability.clone().requires_grad_()
    torch.nn.functional.binary_cross_entropy(leaf, torch.ones(3)).backward()
    torch.testing.assert_close(gradient, leaf.grad)
    assert abs(results[0].item() - (100 + 0.6931472) / 3) < 1e-4


def test_no_outputs_have_a_mean_of_nan(simt: Library) -> None:
    case = Case("hinge", True, 1, 0, torch.float32, (1.0, 0.0), 0)
    assert run(simt, case)["results"].isnan().all()


def test_results_do_not_depend_on_the_order_of_threads(simt: Library) -> None:
    case = Case("non_saturating", False, 1000, 700, torch.float32, (0.9, 0.1), 3)
    first, second = run(simt, case), run(simt, replace(case, order=5))
    assert all(torch.equal(first[name], second[name]) for name in first)
