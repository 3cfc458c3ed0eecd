"""Batch norm + activation in CUDA against float64, thread by thread, over drawn shapes."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from activation_float64 import activation_and_slope
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import (
    ACTIVATIONS,
    DTYPES,
    VARIANTS,
    Device,
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
)


def run_forward(simt: Library, case: Case, training: bool) -> dict[str, Tensor]:
    simt.seed(case.seed)
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
