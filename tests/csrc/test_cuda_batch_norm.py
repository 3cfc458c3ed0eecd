"""Batch norm + activation in CUDA against float64, thread by thread, over drawn shapes."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace

import pytest
import torch
from activation_float64 import activation_and_slope
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import (
    ACTIVATIONS,
    DTYPES,
    VARIANTS,
    Device,
    LaunchError,
    Library,
    pointer,
    rounding_error,
)
from torch import Tensor


class Forward(ctypes.Structure):
    """csrc/cuda/kernels.h: BatchNormForward."""

    _fields_ = (
        ("type", c_int),
        *((name, c_int64) for name in ("groups", "rows", "channels")),
        *((name, c_void_p) for name in ("x", "y", "weight", "bias", "mean", "inverse_deviation")),
        *((name, c_void_p) for name in ("running_mean", "running_var")),
        *((name, c_float) for name in ("momentum", "epsilon")),
        ("activation", c_int),
        ("negative_slope", c_float),
        ("training", c_bool),
        ("variant", c_int),
        ("workspace", c_void_p),
    )


class Backward(ctypes.Structure):
    """csrc/cuda/kernels.h: BatchNormBackward."""

    _fields_ = (
        ("type", c_int),
        *((name, c_int64) for name in ("groups", "rows", "channels")),
        *((name, c_void_p) for name in ("grad_y", "x", "grad_x", "weight", "bias", "mean")),
        *((name, c_void_p) for name in ("inverse_deviation", "grad_weight", "grad_bias")),
        ("activation", c_int),
        ("negative_slope", c_float),
        ("training", c_bool),
        ("variant", c_int),
        ("workspace", c_void_p),
    )


SLOPE, MOMENTUM, EPSILON = 0.2, 0.1, 1e-5


@dataclass(frozen=True)
class Case:
    """A drawn call: sizes, what is there, which device it is cut for, in which thread order."""

    groups: int
    rows: int
    channels: int
    dtype: torch.dtype
    activation: str
    affine: bool
    variant: str
    device: tuple[int, int]
    offset: float
    seed: int
    order: int

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        shape = (self.groups, self.rows, self.channels)
        return {
            "x": (normal(*shape) * 2 + self.offset).to(self.dtype),
            "grad_y": normal(*shape).to(self.dtype),
            "weight": 1 + 0.3 * normal(self.channels) if self.affine else None,
            "bias": 0.5 * normal(self.channels) if self.affine else None,
            "running_mean": normal(self.channels),
            "running_var": 0.5 + normal(self.channels) ** 2,
        }


CASES = st.builds(
    Case,
    groups=st.integers(1, 3),
    rows=st.integers(2, 150),
    channels=st.one_of(st.integers(1, 20), st.sampled_from([8, 16, 24, 64, 264])),
    dtype=st.sampled_from(list(DTYPES)),
    activation=st.sampled_from(ACTIVATIONS),
    affine=st.booleans(),
    variant=st.sampled_from(VARIANTS[:2]),
    device=st.sampled_from([(1, 100_000), (3, 100_000), (6, 232_448), (4, 30_000)]),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 2**32),
    order=st.integers(0, 2**32),
)


def run_forward(simt: Library, case: Case, training: bool) -> dict[str, Tensor]:
    simt.seed(case.order)
    tensors = {name: simt.copy(values) for name, values in case.tensors().items()}
    tensors["y"] = simt.empty(tensors["x"].shape, case.dtype)
    for name in ("mean", "inverse_deviation"):
        tensors[name] = simt.empty((case.groups, case.channels))
    call = Forward(
        DTYPES[case.dtype], case.groups, case.rows, case.channels,
        *(pointer(tensors[name]) for name in (
            "x", "y", "weight", "bias", "mean", "inverse_deviation", "running_mean", "running_var",
        )),
        MOMENTUM, EPSILON, ACTIVATIONS.index(case.activation), SLOPE, training,
        VARIANTS.index(case.variant), None,
    )  # fmt: skip
    device = Device(*case.device)
    call.workspace = pointer(simt.floats("batch_norm_forward", call, device))
    simt.run("batch_norm_forward", call, device)
    return tensors


def expected_forward(case: Case, training: bool) -> dict[str, Tensor]:
    given = {
        name: None if values is None else values.double() for name, values in case.tensors().items()
    }
    x = given["x"]
    mean, variance = given["running_mean"].expand(case.groups, -1), given["running_var"]
    if training:
        mean, variance = x.mean(1), x.var(1, unbiased=False)
        for group in range(case.groups):
            for name, batch in (("mean", mean), ("var", x.var(1, unbiased=True))):
                running = given[f"running_{name}"]
                given[f"running_{name}"] = running + MOMENTUM * (batch[group] - running)
    invstd = (variance + EPSILON).rsqrt().expand(case.groups, -1)
    normalised = (x - mean[:, None]) * invstd[:, None]
    weight = given["weight"] if case.affine else torch.ones(case.channels).double()
    z = normalised * weight + (given["bias"] if case.affine else 0.0)
    return given | {
        "mean": mean, "inverse_deviation": invstd, "normalised": normalised, "z": z,
        "gain": weight * invstd, "y": activation_and_slope(case.activation, z, SLOPE)[0],
    }  # fmt: skip


def check_forward(simt: Library, case: Case, training: bool) -> None:
    got, expected = run_forward(simt, case, training), expected_forward(case, training)
    # Rounding moves the mean by some eps·|x|, z by that times weight / deviation.
    error = rounding_error(torch.float32, case.rows) * expected["x"].abs().amax((0, 1))
    moved = error * expected["gain"].abs() + rounding_error(torch.float32, 4) * (
        1 + expected["z"].abs().amax(1)
    )
    difference = (got["y"].double() - expected["y"]).abs()
    assert (
        difference <= moved[:, None] + rounding_error(case.dtype, 1) * expected["y"].abs()
    ).all()
    if not training:
        return
    assert ((got["mean"].double() - expected["mean"]).abs() <= error).all()
    relative = got["inverse_deviation"].double() / expected["inverse_deviation"] - 1
    assert (relative.abs() <= error * expected["inverse_deviation"] + 1e-6).all()
    for name, power in (("running_mean", 1), ("running_var", 2)):
        bound = rounding_error(torch.float32, case.rows) * (
            1 + expected[name].abs() + expected["x"].abs().amax((0, 1)) ** power
        )
        assert ((got[name].double() - expected[name]).abs() <= bound).all()


@settings(max_examples=120)
@given(case=CASES, training=st.booleans())
def test_forward_agrees_with_float64(shim_library: Library, case: Case, training: bool) -> None:
    check_forward(shim_library, case, training)
    shim_library.release()


def run_backward(simt: Library, case: Case, training: bool) -> dict[str, Tensor]:
    simt.seed(case.order)
    statistics = expected_forward(case, training)
    tensors = {name: simt.copy(values) for name, values in case.tensors().items()}
    tensors["grad_x"] = simt.empty(tensors["x"].shape, case.dtype)
    for name in ("mean", "inverse_deviation"):
        tensors[name] = simt.copy(statistics[name].float())
    for name in ("grad_weight", "grad_bias"):
        tensors[name] = simt.empty((case.channels,))
    call = Backward(
        DTYPES[case.dtype], case.groups, case.rows, case.channels,
        *(pointer(tensors[name]) for name in (
            "grad_y", "x", "grad_x", "weight", "bias", "mean", "inverse_deviation", "grad_weight",
            "grad_bias",
        )),
        ACTIVATIONS.index(case.activation), SLOPE, training, VARIANTS.index(case.variant), None,
    )  # fmt: skip
    device = Device(*case.device)
    call.workspace = pointer(simt.floats("batch_norm_backward", call, device))
    simt.run("batch_norm_backward", call, device)
    return tensors


def check_backward(simt: Library, case: Case, training: bool) -> None:
    got, expected = run_backward(simt, case, training), expected_forward(case, training)
    slope = activation_and_slope(case.activation, expected["z"], SLOPE)[1]
    grad_z = expected["grad_y"] * slope
    product = grad_z * expected["normalised"]
    # (x - mean) and so z carry rounding errors of eps·|x|·gain. Where z lies that close to a kink,
    # either side's slope is right; smooth activations have a slope that moves no faster than z.
    moved = (
        2
        * torch.finfo(torch.float32).eps
        * (1 + expected["x"].abs().amax() * (1 + expected["gain"].abs().amax()))
    )
    if case.activation in ("relu", "leaky_relu"):
        unsure = (expected["z"].abs() < moved) * expected["grad_y"].abs()
    elif case.activation == "identity":
        unsure = torch.zeros_like(grad_z)
    else:
        unsure = moved * expected["grad_y"].abs()
    eps = rounding_error(torch.float32, case.rows)
    weight_error = (unsure * expected["normalised"].abs() + moved * grad_z.abs()).sum(1)
    weight_error = weight_error + eps * product.abs().sum(1)
    bias_error = unsure.sum(1) + eps * grad_z.abs().sum(1)
    assert ((got["grad_bias"].double() - grad_z.sum((0, 1))).abs() <= bias_error.sum(0)).all()
    assert ((got["grad_weight"].double() - product.sum((0, 1))).abs() <= weight_error.sum(0)).all()
    share = 1 / case.rows if training else 0.0
    follows = grad_z.sum(1, keepdim=True) + expected["normalised"] * product.sum(1, keepdim=True)
    gain = expected["gain"][:, None]
    grad_x = gain * (grad_z - share * follows)
    normalised_error = bias_error[:, None] + weight_error[:, None] * expected["normalised"].abs()
    normalised_error = normalised_error + (moved + eps) * (
        product.abs().sum(1, keepdim=True) + follows.abs()
    )
    bound = gain.abs() * (unsure + eps * grad_z.abs() + share * normalised_error)
    bound = bound + rounding_error(case.dtype, 1) * grad_x.abs()
    if case.dtype == torch.float16:
        bound = bound + torch.finfo(torch.float16).smallest_normal * 2.0**-10
    assert ((got["grad_x"].double() - grad_x).abs() <= bound).all()


@settings(max_examples=120)
@given(case=CASES, training=st.booleans())
def test_backward_agrees_with_float64(shim_library: Library, case: Case, training: bool) -> None:
    check_backward(shim_library, case, training)
    shim_library.release()


BIG = Case(2, 600, 16, torch.float32, "relu", True, "resident", (8, 100_000), 0.0, 5, 0)


@pytest.mark.parametrize("run", [run_forward, run_backward])
def test_a_tensor_that_does_not_fit_is_refused_as_resident(shim_library: Library, run) -> None:
    with pytest.raises(LaunchError, match="refused"):
        run(shim_library, replace(BIG, device=(8, 9_000)), True)
    shim_library.release()


@pytest.mark.parametrize("run", [run_forward, run_backward])
def test_results_do_not_depend_on_the_order_of_threads(shim_library: Library, run) -> None:
    for variant in VARIANTS:
        case = replace(BIG, variant=variant)
        first = {name: values.clone() for name, values in run(shim_library, case, True).items()}
        second = run(shim_library, replace(case, order=1), True)
        assert all(torch.equal(first[name], second[name]) for name in first)
        shim_library.release()


@pytest.mark.filterwarnings("ignore:var")
def test_an_empty_batch_launches_nothing(shim_library: Library) -> None:
    case = replace(BIG, rows=0, variant="automatic")
    assert run_forward(shim_library, case, True)["mean"].isnan().all()
    assert run_backward(shim_library, case, True)["grad_weight"].isnan().all()
    shim_library.release()
