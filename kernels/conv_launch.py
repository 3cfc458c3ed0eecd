"""What every convolution launcher needs to know before it launches.

The geometry of a call, the dense NHWC output, and the compile-time facts that a kernel is
specialized on: alignment, width of the addresses, arithmetic of float32.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

# Element offsets at or past this need 64 bits. The margin keeps the index of a masked-out pixel,
# which may lie up to one tile past the last, from wrapping around into the tensor.
INDEX_LIMIT = 2**31 - 2**16


@dataclass(frozen=True)
class Geometry:
    """The sizes of one convolution between a big side and a small side.

    Attributes:
        batch: N.
        big_h, big_w, big_channels: H, W, B.
        small_h, small_w, small_channels: OH, OW, S.
        kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w: as in `torch.nn.functional.conv2d`
            from the big side to the small side.
    """

    batch: int
    big_h: int
    big_w: int
    big_channels: int
    small_h: int
    small_w: int
    small_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int

    @property
    def big_shape(self) -> tuple[int, int, int, int]:
        """[N, B, H, W]."""
        return self.batch, self.big_channels, self.big_h, self.big_w

    @property
    def small_shape(self) -> tuple[int, int, int, int]:
        """[N, S, OH, OW]."""
        return self.batch, self.small_channels, self.small_h, self.small_w

    @property
    def constants(self) -> dict[str, int]:
        """The sizes that a kernel is specialized on."""
        return {
            "H": self.big_h,
            "W": self.big_w,
            "OH": self.small_h,
            "OW": self.small_w,
            "KERNEL_H": self.kernel_h,
            "KERNEL_W": self.kernel_w,
        }

    @property
    def reuse(self) -> float:
        """How often the taps of a kernel read the same pixel of the big side."""
        return self.kernel_h * self.kernel_w / (self.stride_h * self.stride_w)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[S, B, kh, kw]."""
        return self.small_channels, self.big_channels, self.kernel_h, self.kernel_w


def channels_last_empty(
    shape: tuple[int, int, int, int], like: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An unfilled tensor of logical shape [N, C, H, W] that lies densely as [N, H, W, C]."""
    n, c, h, w = shape
    dense = torch.empty((n, h, w, c), dtype=dtype or like.dtype, device=like.device)
    return dense.permute(0, 3, 1, 2)


def wide_index(*tensors: torch.Tensor) -> bool:
    """Whether an element offset into one of the tensors can pass 31 bits."""
    return any(tensor.numel() >= INDEX_LIMIT for tensor in tensors)


def vector(channels: int, like: torch.Tensor) -> int:
    """Elements in the widest access (16 bytes) that rows of so many channels are aligned to.

    Only the full width or single elements: each other value would be one more specialization to
    compile for shapes that hardly occur.
    """
    full = 16 // like.element_size()
    return full if channels % full == 0 else 1


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """`input_precision` of `tl.dot`: "tf32" only for float32 that may be rounded, else "ieee"."""
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


def device_guard(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the tensor's device current: Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
