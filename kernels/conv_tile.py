"""What the convolution kernels share inside a tile: the matrix product and the epilogue.

Every kernel of the family is an implicit GEMM: gather two operand tiles, multiply and accumulate in
float32, then add the bias and apply the activation while the tile is still in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.activation import activate

# Triton's interpreter keeps bfloat16 as 16-bit integers and would multiply those.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def multiply_accumulate(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b.

    Args:
        a: [M, K] and b: [K, N], operands of one dtype.
        accumulator: [M, N], float32.
        PRECISION: "ieee" or "tf32", the arithmetic of float32 operands.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def epilogue(accumulator, bias_ptr, channel, channels, negative_slope, ACTIVATION: tl.constexpr):
    """Bias and activation of a finished tile.

    Args:
        accumulator: [M, N], float32.
        bias_ptr: [channels], any float dtype, or None.
        channel: [N], the output channel of each column; not read at or past `channels`.
        channels: number of output channels.
        negative_slope: of leaky_relu.
        ACTIVATION: a name in `activation.ACTIVATIONS`.
    """
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    return activate(accumulator, negative_slope, ACTIVATION)
