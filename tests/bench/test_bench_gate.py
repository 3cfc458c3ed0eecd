"""The correctness gate: what is wrong gets no figure."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bench.baselines import PlainStep, Recipe, StepRecord, Workload, recipes
from bench.gate import judge, largest_error, tolerance
from bench.method import Timing
from bench.results import ERROR, FAILED, OK, Row
from bench.rows import Entry, rows_of
from bench.shapes import Cost
from bench.step_gate import ExactStep, judge_step

WORKLOAD = Workload(image_size=16, batch_size=8, device=torch.device("cpu"), width=8)


@pytest.fixture(scope="module")
def exact() -> ExactStep:
    return ExactStep(WORKLOAD)


def test_one_wrong_element_among_many_shows() -> None:
    exact = torch.randn(64, 64, 32, dtype=torch.float64)
    output = exact.to(torch.bfloat16)
    allowed = tolerance(torch.bfloat16, 1024)
    assert judge({"y": output}, {"y": exact}, {"y": allowed}).passed
    output[3, 5, 7] = -output[3, 5, 7] + 1
    verdict = judge({"y": output}, {"y": exact}, {"y": allowed})
    assert not verdict.passed
    assert "y is wrong" in verdict.message


def test_a_nan_a_wrong_shape_and_a_missing_output_fail() -> None:
    exact = torch.randn(4, 4, dtype=torch.float64)
    assert largest_error(torch.full((4, 4), math.nan), exact) == math.inf
    assert largest_error(exact[:2], exact) == math.inf
    assert not judge({}, {"y": exact}, {"y": 1.0}).passed


def test_a_wrong_result_is_failed_without_a_ratio_and_an_error_is_an_error() -> None:
    good = judge({"y": torch.ones(2)}, {"y": torch.ones(2)}, {"y": 1e-6})
    bad = judge({"y": torch.zeros(2)}, {"y": torch.ones(2)}, {"y": 1e-6})
    entries = [
        Entry("fastgan", True, bad),
        Entry("fastgan triton", True, failure="RuntimeError: no such kernel"),
        Entry("eager", False, good),
        Entry("compile", False, bad),
    ]
    timings = {"eager": Timing("eager", [1.0, 1.0])}
    rows = rows_of(
        Row("case", "", dtype="float32"),
        entries,
        timings,
        [Cost(10.0, 20.0)],
        {"copy_bytes_per_second": 40.0, "matmul_float32_flops_per_second": 10.0},
    )
    by_name = {row.provider: row for row in rows}
    assert by_name["fastgan"].status == FAILED
    assert by_name["fastgan"].ratio is None
    assert by_name["fastgan"].median is None
    assert by_name["fastgan triton"].status == ERROR
    assert by_name["fastgan triton"].message == "RuntimeError: no such kernel"
    assert by_name["compile"].status == FAILED
    assert by_name["eager"].status == OK
    assert by_name["eager"].ratio == 1.0
    assert by_name["eager"].floor == 1.0
    assert by_name["eager"].floor_share == 1.0


@pytest.mark.parametrize("recipe", recipes(WORKLOAD.device, "bf16")[:3], ids=lambda r: r.name)
def test_every_eager_baseline_makes_the_step_of_the_recipe(
    exact: ExactStep, recipe: Recipe
) -> None:
    verdict = judge_step(
        exact, PlainStep(recipe, WORKLOAD).record(WORKLOAD.latents()), recipe.precision
    )
    assert verdict.passed, verdict.message


def _spoil_gradient(record: StepRecord) -> None:
    record.gradients["G.main.0.weight"] *= 1.5


def _spoil_update(record: StepRecord) -> None:
    record.after["G.main.3.weight"] += 1e-4


def _spoil_statistics(record: StepRecord) -> None:
    record.buffers["D.main.3.num_batches_tracked"] -= 1


def _spoil_loss(record: StepRecord) -> None:
    record.losses["discriminator loss"] = record.losses["discriminator loss"] / 2


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (_spoil_gradient, "gradient of G.main.0.weight"),
        (_spoil_update, "update of G.main.3.weight"),
        (_spoil_statistics, "buffer D.main.3.num_batches_tracked"),
        (_spoil_loss, "discriminator loss"),
    ],
    ids=["gradient", "update", "statistics", "loss"],
)
def test_a_step_that_is_wrong_anywhere_fails(exact: ExactStep, spoil, where: str) -> None:
    record = PlainStep(Recipe("plain script"), WORKLOAD).record(WORKLOAD.latents())
    record = dataclasses.replace(
        record,
        gradients={name: value.clone() for name, value in record.gradients.items()},
    )
    spoil(record)
    verdict = judge_step(exact, record, "fp32")
    assert not verdict.passed
    assert where in verdict.message
