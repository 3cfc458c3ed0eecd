"""Where the native CPU kernels beat torch's operators: tables of what was measured.

Measured on a Zen 5 (AVX-512 with bfloat16 pairs), two threads, against torch 2.13 with oneDNN 3.12
in channels_last, freed memory kept: DCGAN's layers and those of other GANs in `bench`, batches of
1 to 64. What no row speaks of is left to torch. Processors with AMX are not among the measured:
their bfloat16 rows stand on the prototype whose design the kernels follow, with a margin, and their
float32 rows on the other processors'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from fastgan import native_convolution

_MANY = 1 << 30
_HALF, _FLOAT = (torch.bfloat16, torch.float16), (torch.float32,)


class Convolution(NamedTuple):
    """What a row of `CONVOLUTION_WINS` asks of a convolution.

    `pixels` are those of the small side, of the whole batch. `fused`: an activation follows.
    """

    dtype: torch.dtype
    batch: int
    pixels: int
    big_channels: int
    small_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    fused: bool = False

    @property
    def products(self) -> int:
        """How many a pass adds up, taps over the padding among them."""
        channels = self.big_channels * self.small_channels
        return self.pixels * channels * self.kernel_size[0] * self.kernel_size[1]


@dataclass(frozen=True)
class ConvolutionWin:
    """Convolutions of one direction that beat torch's.

    Attributes:
        levels: instruction-set levels in use.
        dtype: of the call.
        direction: "fprop", "dgrad" or "wgrad".
        big, small: bounds (least, most) on the channels of the big and of the small side.
        kernel, stride: the least side of the kernel, the least stride.
        most_kernel, most_stride: the largest.
        batch, pixels: the least batch, and pixels of the small side in it.
        most_pixels: of the small side in the batch.
        products: the least number of them that a pass adds up.
        only_fused: only with an activation in the epilogue, which saves torch's pass for it.
        algorithm: of `native_convolution.ALGORITHMS`; the row holds for what it serves.
    """

    levels: tuple[str, ...]
    dtype: torch.dtype
    direction: str
    big: tuple[int, int]
    small: tuple[int, int]
    kernel: int = 1
    stride: int = 1
    most_kernel: int = _MANY
    most_stride: int = _MANY
    batch: int = 1
    pixels: int = 1
    most_pixels: int = _MANY
    products: int = 1
    only_fused: bool = False
    algorithm: str = "direct"

    def holds(self, call: Convolution) -> bool:
        """Whether the row speaks of such a convolution, at its levels and direction."""
        return (
            call.dtype == self.dtype
            and self.big[0] <= call.big_channels <= self.big[1]
            and self.small[0] <= call.small_channels <= self.small[1]
            and min(call.kernel_size) >= self.kernel
            and min(call.stride) >= self.stride
            and max(call.kernel_size) <= self.most_kernel
            and max(call.stride) <= self.most_stride
            and call.batch >= self.batch
            and self.pixels <= call.pixels <= self.most_pixels
            and call.products >= self.products
            and (
                self.algorithm == "direct"
                or native_convolution.unsupported_by_winograd(
                    dtype=call.dtype, kernel_size=call.kernel_size, stride=call.stride
                )
                is None
            )
        )


def _row(
    levels: tuple[str, ...],
    dtype: torch.dtype,
    direction: str,
    big: int | tuple[int, int],
    small: int | tuple[int, int],
    **bounds: Any,
) -> ConvolutionWin:
    """A row whose channels are bounded from below alone, but for an image's."""
    return ConvolutionWin(levels, dtype, direction, _bounds(big), _bounds(small), **bounds)


def _bounds(channels: int | tuple[int, int]) -> tuple[int, int]:
    return channels if isinstance(channels, tuple) else (channels, _MANY)


_PAIRS, _AMX = ("avx512_bf16",), ("amx_bf16",)
_AVX512 = ("amx_bf16", "avx512_bf16", "avx512")  # the same float32 kernels
_BF16, _FP32 = torch.bfloat16, torch.float32
_IMAGE = (1, 4)  # channels of an image
_POINT: dict[str, Any] = {"most_kernel": 1, "most_stride": 1}  # pixel by pixel
_STRIDED: dict[str, Any] = {"kernel": 4, "most_kernel": 5}  # a discriminator's first
#: A generator's last convolution, of its own size.
_TO_IMAGE: dict[str, Any] = {"kernel": 3, "most_kernel": 7, "most_stride": 1, "pixels": 65536}
#: Below it torch's float32 takes less time than the calls.
_SMALL: dict[str, Any] = {"products": 3_000_000}
#: The first row that holds serves. Winograd's weights are transformed anew in each call: few pixels
#: are faster product by product, and fewer still with the weight read where it lies. A batch of one
#: leaves half of wgrad's bfloat16 pairs empty, which shows where it has many pixels.
CONVOLUTION_WINS = (
    _row(_PAIRS, _BF16, "fprop", 128, 256),
    _row(_PAIRS, _BF16, "fprop", 16, 32, most_pixels=512),
    _row(_PAIRS, _BF16, "fprop", 64, 128, stride=2, most_pixels=1023),
    _row(_PAIRS, _BF16, "fprop", _IMAGE, 32, kernel=4, most_pixels=1024),
    _row(_PAIRS, _BF16, "fprop", _IMAGE, 64, pixels=16384, only_fused=True),
    _row(_PAIRS, _BF16, "fprop", 32, _IMAGE, most_pixels=2048, **_POINT),
    _row(_PAIRS, _BF16, "dgrad", 64, 128, kernel=4),
    _row(_PAIRS, _BF16, "dgrad", 16, 32, stride=2, most_pixels=1024),
    _row(_PAIRS, _BF16, "dgrad", (16, 128), 32, most_pixels=512),
    _row(_PAIRS, _BF16, "dgrad", 16, 32, most_pixels=128),
    _row(_PAIRS, _BF16, "dgrad", _IMAGE, 64, kernel=3),
    _row(_PAIRS, _BF16, "dgrad", _IMAGE, 32, kernel=3, most_pixels=1024),
    _row(_PAIRS, _BF16, "wgrad", 128, 256, kernel=4, stride=2, batch=2),
    _row(_PAIRS, _BF16, "wgrad", 64, 128, stride=2, batch=4),
    _row(_PAIRS, _BF16, "wgrad", 16, 32, batch=2, most_pixels=1024),
    _row(_PAIRS, _BF16, "wgrad", (16, 127), 32, most_pixels=256),
    _row(_PAIRS, _BF16, "wgrad", 16, 32, most_pixels=128),
    _row(_PAIRS, _BF16, "wgrad", _IMAGE, 32, kernel=4, most_kernel=4, batch=2),
    _row(_PAIRS, _BF16, "wgrad", _IMAGE, 32, **_STRIDED, most_pixels=1024),
    _row(_PAIRS, _BF16, "wgrad", 32, (2, 4), pixels=65536, **_POINT),
    _row(_AVX512, _FP32, "fprop", (64, 255), 128, pixels=512, algorithm="winograd"),
    _row(_AVX512, _FP32, "fprop", 256, 256, kernel=4, pixels=1024),
    _row(_AVX512, _FP32, "fprop", (16, 255), 32, most_pixels=256, **_SMALL),
    _row(_AVX512, _FP32, "fprop", 256, 32, most_pixels=128, **_SMALL),
    _row(_AVX512, _FP32, "fprop", _IMAGE, 32, kernel=4, most_pixels=1024),
    _row(_AVX512, _FP32, "fprop", 64, _IMAGE, **_POINT),
    _row(_AVX512, _FP32, "fprop", 32, _IMAGE, most_pixels=4096, **_POINT),
    _row(_AVX512, _FP32, "fprop", 64, _IMAGE, **_TO_IMAGE),
    _row(_AVX512, _FP32, "dgrad", (32, 255), 64, pixels=256, algorithm="winograd"),
    _row(_AVX512, _FP32, "dgrad", 128, 256, kernel=4),
    _row(_AVX512, _FP32, "dgrad", 16, 32, stride=2, most_pixels=256, **_SMALL),
    _row(_AVX512, _FP32, "dgrad", (16, 128), 32, most_pixels=256, **_SMALL),
    _row(_AVX512, _FP32, "dgrad", 16, 32, most_pixels=128, **_SMALL),
    _row(_AVX512, _FP32, "dgrad", _IMAGE, 32, kernel=3),
    _row(_AVX512, _FP32, "dgrad", 32, (1, 1), pixels=65536, **_POINT),
    _row(_AVX512, _FP32, "wgrad", 64, 128, pixels=1024, algorithm="winograd"),
    _row(_AVX512, _FP32, "wgrad", 16, 32, most_pixels=256, **_SMALL),
    _row(_AVX512, _FP32, "wgrad", 32, 64, stride=2, most_pixels=512, **_SMALL),
    _row(_AVX512, _FP32, "wgrad", 128, 256, stride=2, pixels=256),
    _row(_AVX512, _FP32, "wgrad", 64, 128, stride=2, pixels=4096),
    _row(_AVX512, _FP32, "wgrad", _IMAGE, 32, **_STRIDED, most_pixels=1024),
    _row(_AVX512, _FP32, "wgrad", 64, _IMAGE, **_TO_IMAGE),
    _row(_AVX512, _FP32, "wgrad", 32, _IMAGE, pixels=65536, **_POINT),
    _row(_AMX, _BF16, "fprop", 128, 256),
    _row(_AMX, _BF16, "dgrad", 128, 256),
    _row(_AMX, _BF16, "wgrad", 128, 128),
)


def winning_algorithm(level: str, direction: str, call: tuple[Any, ...]) -> str | None:
    """Return the algorithm that beats torch's convolution, or None where none does.

    `call` is a `Convolution`, or a tuple of its fields.
    """
    call = Convolution._make(call)
    for win in CONVOLUTION_WINS:
        if (
            win.direction == direction
            and level in win.levels
            and (call.fused or not win.only_fused)
            and win.holds(call)
        ):
            return win.algorithm
    return None


@dataclass(frozen=True)
class BatchNormWin:
    """Batch norms that beat torch's.

    Attributes:
        training: with the batch's own statistics.
        dtypes: of the call.
        activated: with an activation, for which torch passes over memory twice more.
        most_channels: of the call; torch's slows down where they are few.
        elements: the least that were measured to win, forward and backward together.
        forward_elements: the same of a forward pass that autograd does not record.
    """

    training: bool
    dtypes: tuple[torch.dtype, ...]
    activated: bool
    most_channels: int
    elements: int
    forward_elements: int


#: The first row that holds decides; where none does, and on fewer elements (torch's autograd needs
#: no Python), batch norm is torch's. Channels 16 to 1024, 2^14 to 2^22 elements.
BATCH_NORM_WINS = (
    BatchNormWin(True, _HALF, True, _MANY, 1 << 18, 1 << 18),
    BatchNormWin(True, _FLOAT, True, 72, 1 << 18, 1 << 18),
    BatchNormWin(True, _FLOAT, True, 256, 1 << 19, 1 << 18),
    BatchNormWin(True, _FLOAT, True, 512, 1 << 20, 1 << 18),
    BatchNormWin(True, _FLOAT, True, _MANY, 1 << 20, 1 << 19),
    BatchNormWin(True, _HALF + _FLOAT, False, 72, 1 << 18, 1 << 18),
    BatchNormWin(True, _HALF, False, _MANY, 1 << 19, 1 << 19),
    BatchNormWin(False, _HALF, True, _MANY, 1 << 19, 1 << 19),
    BatchNormWin(False, _FLOAT, True, _MANY, 1 << 20, 1 << 20),
    BatchNormWin(False, _HALF + _FLOAT, False, _MANY, 1 << 21, 1 << 21),
)


def fewest_batch_norm_elements(
    training: bool, dtype: torch.dtype, activated: bool, channels: int, recorded: bool
) -> int | None:
    """Return from how many elements on such a batch norm is won; None: it never is."""
    for win in BATCH_NORM_WINS:
        if (
            training == win.training
            and dtype in win.dtypes
            and win.activated == activated
            and channels <= win.most_channels
        ):
            return win.elements if recorded else win.forward_elements
    return None


#: On fewer elements no batch norm is won.
FEWEST_BATCH_NORM_ELEMENTS = min(min(win.elements, win.forward_elements) for win in BATCH_NORM_WINS)


@dataclass(frozen=True)
class BiasActWin:
    """Biases with an activation that beat torch's.

    Attributes:
        dtypes, activations: of the call.
        most_channels: of the call; torch's addition slows down where they are few.
        elements, forward_elements: as in `BatchNormWin`.
    """

    dtypes: tuple[torch.dtype, ...]
    activations: tuple[str, ...]
    most_channels: int
    elements: int
    forward_elements: int


_CHEAP, _DEAR = ("identity", "relu", "leaky_relu"), ("tanh", "sigmoid")
#: The first row that holds decides. Channels 3 and 64, 2^11 to 2^22 elements.
BIAS_ACT_WINS = (
    BiasActWin(_FLOAT + _HALF, _CHEAP + _DEAR, 4, 1 << 13, 1 << 11),
    BiasActWin(_FLOAT, _DEAR, _MANY, 1 << 16, 1 << 16),
    BiasActWin(_HALF, _DEAR, _MANY, 1 << 18, 1 << 16),
    BiasActWin(_FLOAT, _CHEAP, _MANY, 1 << 21, 1 << 18),
    BiasActWin(_HALF, _CHEAP, _MANY, 1 << 18, 1 << 16),
)


def fewest_bias_act_elements(
    dtype: torch.dtype, activation: str, channels: int, recorded: bool
) -> int | None:
    """Return from how many elements on such a bias and activation is won; None: it never is."""
    for win in BIAS_ACT_WINS:
        if dtype in win.dtypes and activation in win.activations and channels <= win.most_channels:
            return win.elements if recorded else win.forward_elements
    return None


#: On fewer elements no bias and activation is won: by dtype, activation and whether there are more
#: channels than an image has. A look-up instead of a choice for a call of few microseconds.
FEWEST_BIAS_ACT_ELEMENTS = {
    (dtype, activation, many): min(
        fewest_bias_act_elements(dtype, activation, _MANY if many else 1, recorded) or 0
        for recorded in (False, True)
    )
    for dtype in _FLOAT + _HALF
    for activation in _CHEAP + _DEAR
    for many in (False, True)
}
