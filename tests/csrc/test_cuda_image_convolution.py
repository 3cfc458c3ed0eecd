"""The convolutions of images in CUDA against float64, thread by thread, over drawn geometries."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace

import pytest
import torch
from activation_float64 import activation_and_slope
from hypothesis import given, settings
from hypothesis import strategies as st
from simt_library import ACTIVATIONS, DTYPES, Device, Library, pointer, rounding_error
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight


class ImageConvolution(ctypes.Structure):
    """csrc/cuda/kernels.h: ImageConvolution."""

    _fields_ = (
        ("type", c_int),
        ("batch", c_int64),
        *((f"{side}_{size}", c_int) for side in ("big", "small")
          for size in ("height", "width", "channels")),
        *((f"{name}_{size}", c_int) for name in ("kernel", "stride", "padding")
          for size in ("height", "width")),
        *((name, c_void_p) for name in ("big", "small", "weight", "bias", "result")),
        ("result_type", c_int),
        ("activation", c_int),
        ("negative_slope", c_float),
        ("workspace", c_void_p),
    )  # fmt: skip


SLOPE = 0.2


@dataclass(frozen=True)
class Case:
    """A drawn call: geometry, types and epilogue; the order of its threads."""

    batch: int
    channels: int
    small_channels: int
    small_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    extra: tuple[int, int]
    dtype: torch.dtype
    result_dtype: torch.dtype
    activation: str
    biased: bool
    multiprocessors: int
    seed: int
    order: int = 0

    @property
    def big_size(self) -> tuple[int, int]:
        """Sizes that the small side's follow from; `extra` is what the stride leaves over."""
        return tuple(
            max(1, (small - 1) * stride + kernel - 2 * padding + extra % stride)
            for small, kernel, stride, padding, extra in zip(
                self.small_size, self.kernel, self.stride, self.padding, self.extra, strict=True
            )
        )

    def tensors(self) -> dict[str, Tensor]:
        """Logical NCHW, in the case's dtype; the biases float32."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = {
            "big": (self.batch, self.channels, *self.big_size),
            "weight": (self.small_channels, self.channels, *self.kernel),
        }
        made = {
            name: torch.randn(shape, generator=generator).to(self.dtype)
            for name, shape in shapes.items()
        }
        small = F.conv2d(made["big"].double(), made["weight"].double(), None, **self.steps)
        made["small"] = torch.randn(small.shape, generator=generator).to(self.dtype)
        made["small_bias"] = torch.randn(self.small_channels, generator=generator)
        made["big_bias"] = torch.randn(self.channels, generator=generator)
        return made

    @property
    def steps(self) -> dict[str, tuple[int, int]]:
        return {"stride": self.stride, "padding": self.padding}


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


CASES = st.builds(
    Case,
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    small_channels=st.one_of(st.integers(1, 9), st.sampled_from([16, 40, 72])),
    small_size=pairs(1, 7),
    kernel=pairs(1, 5),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    extra=pairs(0, 2),
    dtype=st.sampled_from(list(DTYPES)),
    result_dtype=st.sampled_from(list(DTYPES)),
    activation=st.sampled_from(ACTIVATIONS),
    biased=st.booleans(),
    multiprocessors=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    order=st.integers(0, 2**32),
).filter(
    lambda case: all(
        big + 2 * padding >= kernel
        for big, padding, kernel in zip(case.big_size, case.padding, case.kernel, strict=True)
    )
)


def channels_last(simt: Library, tensor: Tensor) -> Tensor:
    return simt.copy(tensor.permute(0, 2, 3, 1).contiguous())


def run(simt: Library, case: Case, direction: str) -> Tensor:
    """Return the result as logical NCHW."""
    simt.seed(case.order)
    given = case.tensors()
    shape = {"fprop": given["small"], "dgrad": given["big"], "wgrad": given["weight"]}[direction]
    dtype = case.result_dtype if direction == "wgrad" else case.dtype
    n, c, h, w = shape.shape
    result = simt.empty((n, h, w, c), dtype)
    operands = {"fprop": ("big", "weight"), "dgrad": ("small", "weight"), "wgrad": ("big", "small")}
    memory = {name: channels_last(simt, given[name]) for name in operands[direction]}
    side = {"fprop": "small", "dgrad": "big"}.get(direction)
    bias = simt.copy(given[f"{side}_bias"]) if side and case.biased else None
    call = ImageConvolution(
        DTYPES[case.dtype], case.batch, *case.big_size, case.channels,
        *given["small"].shape[2:], case.small_channels, *case.kernel, *case.stride, *case.padding,
        *(pointer(memory.get(name)) for name in ("big", "small", "weight")), pointer(bias),
        pointer(result), DTYPES[dtype], ACTIVATIONS.index(case.activation), SLOPE, None,
    )  # fmt: skip
    arguments = [call]
    if direction == "wgrad":
        arguments.append(Device(case.multiprocessors, 100_000))
        call.workspace = pointer(simt.floats("image_wgrad", *arguments))
    simt.run(f"image_{direction}", *arguments)
    return result.permute(0, 3, 1, 2)


def product(case: Case, direction: str, given: dict[str, Tensor]) -> Tensor:
    if direction == "fprop":
        return F.conv2d(given["big"], given["weight"], None, **case.steps)
    if direction == "dgrad":
        return conv2d_input(given["big"].shape, given["weight"], given["small"], **case.steps)
    return conv2d_weight(given["big"], given["weight"].shape, given["small"], **case.steps)


def check(simt: Library, case: Case, direction: str) -> None:
    given = {name: values.double() for name, values in case.tensors().items()}
    z = product(case, direction, given)
    sizes = product(case, direction, {name: values.abs() for name, values in given.items()})
    dtype = case.dtype
    if direction == "wgrad":
        expected, dtype = z, case.result_dtype
        terms = given["small"].numel() // case.small_channels
    else:
        bias = given["small_bias" if direction == "fprop" else "big_bias"].view(1, -1, 1, 1)
        z, sizes = (z + bias, sizes + bias.abs()) if case.biased else (z, sizes)
        expected = activation_and_slope(case.activation, z, SLOPE)[0]
        terms = case.kernel[0] * case.kernel[1] * max(case.channels, case.small_channels)
    got = run(simt, case, direction).double()
    bound = rounding_error(torch.float32, terms) * (1e-2 + sizes)
    bound = bound + rounding_error(dtype, 1) * expected.abs()
    assert ((got - expected).abs() <= bound).all()


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@settings(max_examples=110)
@given(case=CASES)
def test_agrees_with_float64(shim_library: Library, direction: str, case: Case) -> None:
    check(shim_library, case, direction)
    shim_library.release()


DCGAN = Case(
    2, 3, 64, (5, 4), (4, 4), (2, 2), (1, 1), (0, 0), torch.float32, torch.float32, "tanh", True,
    2, 0,
)  # fmt: skip


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_results_do_not_depend_on_the_order_of_threads(simt: Library, direction: str) -> None:
    first, second = (run(simt, replace(DCGAN, order=order), direction) for order in (1, 2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_an_empty_batch_launches_nothing(simt: Library, direction: str) -> None:
    assert run(simt, replace(DCGAN, batch=0), direction).numel() == 0


def test_the_weight_gradient_of_an_empty_batch_is_zero(simt: Library) -> None:
    assert (run(simt, replace(DCGAN, batch=0), "wgrad") == 0).all()
