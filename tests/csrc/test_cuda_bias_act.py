"""Bias + activation in CUDA against float64, thread by thread, over drawn shapes."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace

import torch
from activation_float64 import activation_and_slope
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import ACTIVATIONS, DTYPES, Device, Library, pointer, rounding_error
from torch import Tensor


class BiasAct(ctypes.Structure):
    """csrc/cuda/kernels.h: BiasAct."""

    _fields_ = (
        ("type", c_int),
        ("rows", c_int64),
        ("channels", c_int64),
        *((name, c_void_p) for name in ("x", "bias", "grad_y", "result", "grad_bias")),
        ("activation", c_int),
        ("negative_slope", c_float),
        ("workspace", c_void_p),
    )


SLOPE = 0.2


@dataclass(frozen=True)
class Case:
    """A drawn call: sizes, what is there, which device it is cut for, in which thread order."""

    rows: int
    channels: int
    dtype: torch.dtype
    activation: str
    biased: bool
    multiprocessors: int
    seed: int

    def tensors(self) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.rows, self.channels)
        bias = torch.randn(self.channels, generator=generator)
        return {
            "x": torch.randn(shape, generator=generator).to(self.dtype),
            "grad_y": torch.randn(shape, generator=generator).to(self.dtype),
            "bias": bias if self.biased else None,
        }


CASES = st.builds(
    Case,
    rows=st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 512])),
    channels=st.one_of(st.integers(1, 20), st.sampled_from([3, 64, 264])),
    dtype=st.sampled_from(list(DTYPES)),
    activation=st.sampled_from(ACTIVATIONS),
    biased=st.booleans(),
    multiprocessors=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)


def run(simt: Library, case: Case, direction: str) -> dict[str, Tensor]:
    simt.seed(case.seed)
    tensors = {name: simt.copy(values) for name, values in case.tensors().items()}
    tensors["result"] = simt.empty((case.rows, case.channels), case.dtype)
    tensors["grad_bias"] = simt.empty((case.channels,)) if case.biased else None
    names = ("x", "bias", "grad_y", "result", "grad_bias")
    call = BiasAct(
        DTYPES[case.dtype], case.rows, case.channels, *(pointer(tensors[name]) for name in names),
        ACTIVATIONS.index(case.activation), SLOPE, None,
    )  # fmt: skip
    device = Device(case.multiprocessors, 100_000)
    if direction == "backward":
        call.workspace = pointer(simt.floats("bias_act_backward", call, device))
    simt.run(f"bias_act_{direction}", call, device)
    return tensors


def expected(case: Case) -> tuple[Tensor, Tensor]:
    """Return y and dx in float64."""
    given = {name: t if t is None else t.double() for name, t in case.tensors().items()}
    z = given["x"] if given["bias"] is None else given["x"] + given["bias"]
    y, slope = activation_and_slope(case.activation, z, SLOPE)
    return y, given["grad_y"] * slope


def check(simt: Library, case: Case) -> None:
    y, grad_x = expected(case)
    single, own = rounding_error(torch.float32, 4), rounding_error(case.dtype, 1)
    got = run(simt, case, "forward")
    assert ((got["result"].double() - y).abs() <= single + own * y.abs()).all()
    got = run(simt, case, "backward")
    grad_y = got["grad_y"].double()
    bound = single * grad_y.abs() + own * grad_x.abs() + 2.0**-24
    assert ((got["result"].double() - grad_x).abs() <= bound).all()
    if case.biased:
        bound = rounding_error(torch.float32, case.rows) * grad_y.abs().sum(0)
        assert ((got["grad_bias"].double() - grad_x.sum(0)).abs() <= bound).all()


@settings(max_examples=120)
@given(case=CASES)
def test_forward_and_backward_agree_with_float64(shim_library: Library, case: Case) -> None:
    check(shim_library, case)
    shim_library.release()


IMAGES = Case(512, 3, torch.bfloat16, "tanh", True, 3, 0)


def test_an_empty_batch_launches_nothing(simt: Library) -> None:
    assert run(simt, replace(IMAGES, rows=0), "forward")["result"].numel() == 0
    assert run(simt, replace(IMAGES, rows=0), "backward")["grad_bias"].isnan().all()


def test_the_bias_gradient_does_not_depend_on_the_order_of_threads(simt: Library) -> None:
    first = run(simt, IMAGES, "backward")
    second = run(simt, replace(IMAGES, seed=0), "backward")
    assert torch.equal(first["grad_bias"], second["grad_bias"])
