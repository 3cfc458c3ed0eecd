"""What is freed stays with the process: no fresh pages are taken from the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastgan.memory import keep_freed_memory

# Three blocks of 16 MiB at a time, twenty times: 12,288 pages of 4 KiB a round.
FAULTS = """
import resource, sys, torch
from fastgan.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    blocks = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(3)]
for _ in range(3):
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
    # The heap may still grow by a block or two; otherwise every round has faults.
    assert faults("keep") < faults("give back") / 5
