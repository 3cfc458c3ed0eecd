"""How far a result may be from the exact one: derived bounds, written once, never loosened.

Kernels round their inputs' products and sums in float32 (float64 for float64) and their results to
the data's dtype. For a sum of n products the standard bound (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1) holds in any order of summation:

    |computed - exact| <= n u sum |a b|,   u = half the spacing of numbers near 1

so a test needs the exact value and the *magnitude* sum |a b|, which is the same operation on
absolute values. Products of TF32 and splits over partial sums change n and u, not the form.
"""

from __future__ import annotations

import torch
from torch import Tensor


def epsilon(dtype: torch.dtype) -> float:
    """The spacing of numbers near 1: twice the largest relative error of one rounding."""
    return torch.finfo(dtype).eps


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are accumulated in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def sum_of_products(
    dtype: torch.dtype, terms: int, magnitude: Tensor, *, roundings: int = 1
) -> Tensor:
    """Bound on a sum of products, elementwise.

    Args:
        dtype: of the operands and the result.
        terms: products in one sum.
        magnitude: the sum of the absolute values of the products, float64.
        roundings: how often a value on the way, or the result, is rounded to `dtype`.

    Returns:
        The bound, of magnitude's shape.
    """
    relative = (terms + 2) * epsilon(accumulation(dtype)) + roundings * epsilon(dtype)
    return relative * magnitude + smallest(dtype)


def smallest(dtype: torch.dtype) -> float:
    """What underflow may take from a result."""
    return torch.finfo(dtype).tiny


def assert_within(name: str, actual: Tensor, exact: Tensor, bound: Tensor | float) -> None:
    """Fail unless |actual - exact| <= bound everywhere; NaN and infinity fail too."""
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    error = (actual.detach().double().cpu() - exact.detach().double().cpu()).abs()
    limit = torch.as_tensor(bound, dtype=torch.float64).cpu().expand_as(error)
    wrong = ~(error <= limit)
    if wrong.any():
        worst = torch.where(wrong, error / limit, torch.zeros_like(error)).nan_to_num(
            nan=float("inf")
        )
        at = int(worst.argmax())
        place = [int(i) for i in torch.unravel_index(torch.tensor(at), error.shape)]
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {error.numel()} elements are wrong; the worst, at "
            f"{place}, is {actual.flatten()[at].item():.9g} instead of "
            f"{exact.flatten()[at].item():.9g}, allowed {float(limit.flatten()[at]):.3g}"
        )
