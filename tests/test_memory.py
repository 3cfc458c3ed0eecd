"""What is freed stays with the process: no fresh pages are taken from the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastgan.memory import keep_freed_memory

# A block of 40 MiB, twenty times: glibc maps blocks above 32 MiB anew each time unless told not to.
# Its heap grows at the first eight of a size: their alignment leaves remainders, which the thread's
# cache keeps from being joined to the block again until it is full.
FAULTS = """
import resource, sys, torch
from fastgan.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    block = torch.ones(40 << 20, dtype=torch.uint8)
for _ in range(20):
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no such setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert faults("keep") < faults("give back") / 5
