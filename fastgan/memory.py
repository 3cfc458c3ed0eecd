"""Memory of a CPU process: what a training step frees stays with it for the next one.

By default glibc gives large blocks back to the system when they are freed, and every step takes
fresh pages again, each zeroed and faulted in: thousands of page faults a step, and 5 to 20% of its
time in the measurements of `bench step --isolate`.
"""

from __future__ import annotations

import ctypes
import functools
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 1 << 30  # bytes; larger blocks keep mappings of their own
_OLD_LIMIT = 32 << 20  # the highest threshold that older versions of glibc take


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on; blocks of 1 GiB and more excepted.

    The trainer does it (`TrainConfig.keep_memory`); a training loop of your own on a CPU, with
    fastgan's layers or with torch's, gains as much by calling it once at its start.

    Returns:
        Whether the C library does so: glibc's does, others have no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    taken = mallopt(_MMAP_THRESHOLD, _NEVER) or mallopt(_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(taken and mallopt(_TRIM_THRESHOLD, _NEVER))
