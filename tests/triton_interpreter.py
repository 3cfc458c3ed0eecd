"""Makes Triton's interpreter round float32 to bfloat16 as GPUs do: to nearest, ties to even.

The interpreter truncates, which doubles the error of every bfloat16 store and would have to be
allowed for in every tolerance. Its conversion is replaced by torch's, which is also much quicker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert_any_float = interpreter._convert_float


def _convert_float(data: np.ndarray, before: Any, after: Any, rounding_mode: Any) -> np.ndarray:
    if (before, after) == (tl.float32, tl.bfloat16):
        exact = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
        return exact.to(torch.bfloat16).view(torch.uint16).numpy().reshape(data.shape)
    if (before, after) == (tl.bfloat16, tl.float32):
        return data.astype(np.uint32) << np.uint32(16)
    return _convert_any_float(data, before, after, rounding_mode)


def use_hardware_rounding() -> None:
    """Install the replacement in this process's interpreter."""
    interpreter._convert_float = _convert_float
