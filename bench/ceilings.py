"""The two ceilings of a device, measured beside whatever is compared with them.

A datasheet's rates are leads; what a large copy and a large matrix product reach in the same
process, on the same day, is what a kernel could have reached. The product is taken both as such
and as a 1×1 convolution, which another library computes, and the better of the two counts: on some
processors the library behind `torch.mm` is not the one that knows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from bench.method import Contestant, race
from bench.shapes import Cost

COPY = "copy_bytes_per_second"
MATRIX = {
    "float32": "matmul_float32_flops_per_second",
    "bfloat16": "matmul_bfloat16_flops_per_second",
}
AS_CONVOLUTION = ", as a convolution"
# Elements of the copied buffers and sides of the matrices: beyond any cache, and, on a GPU, big
# enough to fill it. "tiny" is for a walk through the suite's code.
SIZES = {
    "cpu": (1 << 26, 2048),
    "cuda": (1 << 30, 8192),
    "tiny": (1 << 16, 64),
}


def measure_ceilings(
    device: torch.device, *, tiny: bool = False, seconds: float = 1.5
) -> dict[str, float]:
    """Copy bandwidth (bytes read + written a second) and matrix rates (FLOP/s) by dtype."""
    elements, side = SIZES["tiny" if tiny else device.type]
    source = torch.empty(elements, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    contestants = [Contestant(COPY, lambda: target.copy_(source))]
    for dtype, name in MATRIX.items():
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        contestants.append(Contestant(name, lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
        # The same product: rows of `a` as pixels of an NHWC image, `b` as its 1×1 kernel.
        image = a.view(1, side, 1, side).permute(0, 3, 1, 2)
        kernel = b.view(side, side, 1, 1)
        contestants.append(
            Contestant(name + AS_CONVOLUTION, lambda x=image, w=kernel: F.conv2d(x, w))  # type: ignore[misc]
        )
    work = {COPY: 2.0 * elements} | dict.fromkeys(MATRIX.values(), 2.0 * side**3)
    ceilings: dict[str, float] = {}
    for name, timing in race(contestants, device, seconds=0.0 if tiny else seconds).items():
        if timing.samples:
            name = name.removesuffix(AS_CONVOLUTION)
            rate = work[name] / min(timing.samples)
            ceilings[name] = max(rate, ceilings.get(name, 0.0))
    return ceilings


def floor_seconds(passes: Sequence[Cost], dtype: str, ceilings: dict[str, float]) -> float | None:
    """The least seconds for `passes`, one after the other: each the larger of its two terms.

    None where a ceiling that is needed was not measured.
    """
    rate, bandwidth = ceilings.get(MATRIX.get(dtype, "")), ceilings.get(COPY)
    if not passes or bandwidth is None or (rate is None and any(one.flops for one in passes)):
        return None
    return sum(max(one.flops / rate if rate else 0.0, one.bytes / bandwidth) for one in passes)


def describe_ceilings(ceilings: dict[str, float]) -> str:
    """For tables: "copy 26.1 GB/s, matrix product 0.21 TFLOP/s float32, 1.9 bfloat16"."""
    parts = []
    if COPY in ceilings:
        parts.append(f"copy {ceilings[COPY] / 1e9:,.0f} GB/s")
    parts += [
        f"{dtype} matrix product {ceilings[name] / 1e12:,.3g} TFLOP/s"
        for dtype, name in MATRIX.items()
        if name in ceilings
    ]
    return ", ".join(parts)
