"""The correctness gate: no figure without a result that agrees with float64.

Every output of a provider is compared, element by element, with the same computation in float64
from the same (already rounded) inputs. The measure is

    error = max |output − exact| / (|exact| + rms(exact)),

relative for large elements and absolute, in units of a typical one, for small ones: a single
wrong element of an ordinary size shows however large the tensor is. The tolerance is derived:
the result's own rounding, plus the growth of float32 rounding over a sum of K products (√K for
rounding errors of random sign: Higham, Accuracy and Stability of Numerical Algorithms, section
2.8), plus TF32's operand rounding where torch's switch allows that arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# A chain rounds more than once (batch norm, then the activation; the gradient in, then out), and
# the largest of millions of rounding errors lies some five deviations out.
SAFETY = 4.0
TF32_EPS = 2.0**-10


@dataclass(frozen=True)
class Verdict:
    """Whether outputs agree with float64: the largest error, what is allowed, and where."""

    passed: bool
    error: float
    tolerance: float
    where: str

    @property
    def message(self) -> str:
        """Why the gate failed, or ""."""
        if self.passed:
            return ""
        return (
            f"{self.where} is wrong: error {self.error:.2g}, at most {self.tolerance:.2g} allowed"
        )


def tolerance(dtype: torch.dtype, reduction: int, *, tf32: bool = False) -> float:
    """The error allowed in an output of `dtype` that sums `reduction` products in float32."""
    rounding = torch.finfo(dtype).eps + math.sqrt(reduction) * torch.finfo(torch.float32).eps
    return SAFETY * (rounding + (TF32_EPS if tf32 else 0.0))


def tf32_allowed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's switches let float32 convolutions or matrix products round to TF32."""
    return (
        device.type == "cuda"
        and dtype == torch.float32
        and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    )


def largest_error(output: Tensor, exact: Tensor) -> float:
    """The measure above; infinite for a wrong shape, an element nobody wrote, or a NaN."""
    if output.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    exact = exact.detach().to(torch.float64)
    difference = (output.detach().to(exact.device, torch.float64) - exact).abs()
    scale = exact.abs() + exact.square().mean().sqrt()
    error = (difference / scale.clamp_min(torch.finfo(torch.float64).tiny)).max().item()
    return error if math.isfinite(error) else math.inf


def judge(
    outputs: Mapping[str, Tensor], exact: Mapping[str, Tensor], allowed: Mapping[str, float]
) -> Verdict:
    """Compare every output by name; the verdict speaks of the one worst against its tolerance."""
    if outputs.keys() != exact.keys():
        missing = ", ".join(sorted(exact.keys() ^ outputs.keys()))
        return Verdict(False, math.inf, 0.0, f"the set of outputs ({missing})")
    worst = Verdict(True, 0.0, min(allowed.values(), default=0.0), "")
    worst_share = -1.0
    for name, value in exact.items():
        error = largest_error(outputs[name], value)
        share = error / allowed[name]
        if share > worst_share:
            worst_share = share
            worst = Verdict(error <= allowed[name], error, allowed[name], name)
    return worst


def poison_allocator(like: Mapping[str, Tensor], device: torch.device) -> None:
    """Leave NaN where the allocator will put the next tensors of these shapes.

    An output element that nobody writes then shows as NaN, not as a lucky leftover.
    """
    blocks = [
        torch.full(tensor.shape, math.nan, dtype=tensor.dtype, device=device)
        for tensor in like.values()
        if tensor.is_floating_point()
    ]
    del blocks
