"""The memory that the kernels keep does not grow with the batch, and is borrowed from an arena."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A fresh process of one thread: what earlier calls left would hide what a call asks for.
KEPT = """
import sys
import torch
from fastgan import native, native_convolution
torch.set_num_threads(1)
level, dtype, algorithm = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
def dense(*shape):
    return torch.ones(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
with native.forced_level(level):
    for n in (64, 256):
        for b, s in ((64, 70), (3, 64), (65, 260)):
            native_convolution.wgrad(
                dense(n, b, 16, 16), dense(n, s, 8, 8), kernel_size=(4, 4), stride=(2, 2),
                padding=(1, 1), algorithm=algorithm,
            )
        print(native.build().module.scratch_bytes())
"""


@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [("float32", "direct"), ("float32", "winograd"), ("bfloat16", "direct"), ("float16", "direct")],
)
def test_weight_gradients_keep_no_copy_of_their_operands(
    level: str, dtype: str, algorithm: str
) -> None:
    command = [sys.executable, "-c", KEPT, level, dtype, algorithm]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    few, many = map(int, done.stdout.split())
    # At most: two partial sums of 4 taps and a task's 9 factors, each 260 x 64 floats; a turn of
    # 128 pixels, 260 channels of one side and up to 4 x 64 of the other: 1.4 MB. An operand has 17.
    # AMX: partial sums of 4 MB, a task's sums of 16 taps x 128 x 64 floats, a turn of 0.8 + 0.3 MB;
    # as many splits as there are images in hundreds, so that they are fewer of a small batch.
    if (level, dtype) == ("amx_bf16", "bfloat16"):
        assert 0 < few <= many < 6 << 20
    else:
        assert 0 < few == many < 2 << 20


# The weight is packed, 4 MB or more; the operand behind the prologue has 4 MB in bfloat16.
BORROWED = """
import sys
import torch
from fastgan import keep_freed_memory, native, native_convolution
from fastgan.memory import arena
torch.set_num_threads(1)
level, dtype, algorithm = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
def dense(*shape):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
scratch_bytes = native.build().module.scratch_bytes
small, weight = dense(256, 512, 4, 4), dense(512, 256, 4, 4)
ones = torch.ones(1, 512)
prologue = None
if algorithm == "direct":
    prologue = native_convolution.Prologue(ones, ones, "leaky_relu", 0.2)
def run():
    return native_convolution.dgrad(
        small, weight, big_size=(8, 8), stride=(2, 2), padding=(1, 1), prologue=prologue,
        algorithm=algorithm,
    )
with native.forced_level(level):
    expected = run()
    kept = scratch_bytes()
    assert kept >= 4 << 20, kept
    assert keep_freed_memory() and arena() is not None
    for _ in range(2):
        actual = run()
        assert torch.equal(actual, expected)
        usage, tensor = arena(), actual.numel() * actual.element_size()
        assert usage["in_use"] == tensor and usage["blocks"] == 1
        assert scratch_bytes() < 1 << 20, scratch_bytes()
        del actual
    # What the first call gave back on the way, the second has borrowed.
    assert usage["most_in_use"] >= tensor + (4 << 20), usage
"""


@pytest.mark.parametrize(
    ("dtype", "algorithm"),
    [("float32", "direct"), ("float32", "winograd"), ("bfloat16", "direct")],
)
def test_large_scratch_memory_is_borrowed_from_the_arena(
    level: str, dtype: str, algorithm: str
) -> None:
    command = [sys.executable, "-c", BORROWED, level, dtype, algorithm]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
