"""Memory of a CPU process: what a training step frees stays with it for the next one.

By default glibc gives large blocks back to the system when they are freed, and every step takes
fresh pages again, each zeroed and faulted in: thousands of page faults a step, and 5 to 20% of its
time in the measurements of `bench step --isolate`.

Told to keep them, it does, but places them badly: a quarter of a step's peak were holes. So with
the native kernels' library, torch's tensors are allocated in an arena (csrc/cpu/arena.h), whose
pages move where holes would remain, and glibc keeps the rest. FASTGAN_NATIVE=off does without, as
a process does whose addresses are limited (`ulimit -v`) or to which another library has given an
allocator.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from types import ModuleType

from fastgan import native

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 1 << 30  # bytes; larger blocks keep mappings of their own
_OLD_LIMIT = 32 << 20  # the highest threshold that older versions of glibc take


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on; blocks of 1 GiB and more excepted.

    The trainer does it (`TrainConfig.keep_memory`); a training loop of your own on a CPU, with
    fastgan's layers or with torch's, gains as much by calling it once at its start.

    Every CPU tensor of torch's that is allocated later and holds 64 KiB or more goes into an arena
    if the native library is there; if it is compiled on first use, from then on. What the process
    has held at its peak stays resident until it ends, for tensors alone: memory of the arena is
    never given back to the system.

    Returns:
        Whether it does so by now; False means that there is neither glibc nor the native library.

    Raises:
        NativeBuildError: FASTGAN_NATIVE=require, and the native library is damaged.
    """
    native.extension(build=False)
    native.when_loaded(_allocate_in_arena)
    return _keep_heap() or arena() is not None


def arena() -> dict[str, int] | None:
    """Return the state of the arena that torch's CPU tensors are allocated in, None without one.

    Returns:
        In bytes `reserved`, the addresses; `in_use`, the tensors that live, and `most_in_use`, that
        ever lived at once; `backed`, what has memory; and `highest`, up to the highest end that a
        tensor ever had. And `blocks` and `free_blocks`, how many there are.
    """
    extension = native.extension(build=False)
    usage = extension.module.arena() if extension is not None else {"reserved": 0}
    return usage if usage["reserved"] else None


def _allocate_in_arena(module: ModuleType) -> None:
    module.allocate_tensors()


def _keep_heap() -> bool:
    """Let glibc keep what is freed; False if the C library has no such setting."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    taken = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _NEVER))
