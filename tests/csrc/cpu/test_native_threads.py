"""Results are the same to the last bit for any number of threads, and from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from native_cases import DTYPES, normal
from torch import Tensor

from fastgan import native_convolution, native_kernels
from fastgan.native_fusion import Prologue, Statistics


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def convolutions(dtype: torch.dtype, algorithm: str = "direct") -> list[Tensor]:
    results = []
    for n, b, s, size in ((9, 64, 70, 8), (5, 3, 33, 12), (3, 130, 20, 5), (2, 40, 140, 30)):
        call = {"stride": (2, 2), "padding": (1, 1), "algorithm": algorithm}
        big, weight = normal((n, b, size, size), dtype, 1), normal((s, b, 4, 4), dtype, 2)
        small = native_convolution.fprop(big, weight, None, **call)
        results += [
            small,
            native_convolution.dgrad(small, weight, None, big_size=(size, size), **call),
            native_convolution.wgrad(big, small, kernel_size=(4, 4), **call),
        ]
    return results


def fused_convolutions(dtype: torch.dtype) -> list[Tensor]:
    results = []
    for n, b, s, size in ((8, 64, 70, 9), (4, 3, 33, 12), (40, 130, 20, 5)):
        call = {"stride": (2, 2), "padding": (1, 1)}
        big, weight = normal((n, b, size, size), dtype, 1), normal((s, b, 4, 4), dtype, 2)
        prologue = Prologue(
            normal((2, b), torch.float32, 3), normal((2, b), torch.float32, 4), "relu"
        )
        of_small, of_big = Statistics.empty(4, s), Statistics.empty(4, b)
        small = native_convolution.fprop(
            big, weight, None, **call, prologue=prologue, statistics=of_small
        )
        results += [
            small,
            native_convolution.dgrad(
                small, weight, None, big_size=(size, size), **call, statistics=of_big
            ),
            native_convolution.wgrad(big, small, kernel_size=(4, 4), **call, big_prologue=prologue),
            of_small.mean, of_small.m2, of_big.mean, of_big.m2,
        ]  # fmt: skip
    return results


def winograd_convolutions(dtype: torch.dtype) -> list[Tensor]:
    return convolutions(dtype, "winograd") if dtype == torch.float32 else []


def batch_norms(dtype: torch.dtype) -> list[Tensor]:
    shape = (40, 66, 20, 21)  # several tasks in each of two groups
    x, grad_y = normal(shape, dtype, 1), normal(shape, dtype, 2)
    running = [torch.zeros(66), torch.ones(66)]
    epilogue = {"activation": "leaky_relu", "negative_slope": 0.2, "stat_groups": 2}
    y, mean, invstd = native_kernels.forward_training(
        x, *running, None, None, momentum=0.1, eps=1e-5, **epilogue
    )
    gradients = native_kernels.backward(
        grad_y, x, mean, invstd, None, None, training=True, **epilogue
    )
    return [y, mean, invstd, *gradients, *running]


def elementwise(dtype: torch.dtype) -> list[Tensor]:
    x, grad_y = normal((40, 3, 17, 16), dtype, 1), normal((40, 3, 17, 16), dtype, 2)
    bias = normal((3,), torch.float32, 3)
    call = {"activation": "tanh", "negative_slope": 0.0}
    y = native_kernels.bias_act_forward(x, bias, **call)
    grad_x, grad_bias = native_kernels.bias_act_backward(grad_y, x, bias, **call)
    assert grad_bias is not None
    logits = normal((5000,), dtype, 4), normal((7000,), dtype, 5)
    losses = native_kernels.discriminator(
        *logits, objective="non_saturating", real_label=0.9, fake_label=0.0
    )
    return [y, grad_x, grad_bias, *losses]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "compute", [convolutions, winograd_convolutions, fused_convolutions, batch_norms, elementwise]
)
def test_threads_change_no_bit(
    level, compute: Callable[[torch.dtype], list[Tensor]], dtype: torch.dtype
) -> None:
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(compute(dtype))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)
