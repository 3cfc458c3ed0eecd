"""What a step frees stays with the process: later steps take no fresh pages from the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastgan.training import trainer as trainer_module
from fastgan.training.memory import keep_freed_memory

# Three blocks of 16 MiB at a time, twenty times: 12,288 pages of 4 KiB each time.
FAULTS = """
import resource, sys, torch
from fastgan.training.memory import keep_freed_memory
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
    assert faults("keep") < 200
    # Otherwise this test would show nothing (huge pages leave one fault in 512).
    assert faults("give back") > 20 * 3 * 8


@pytest.mark.parametrize("keep", [True, False])
def test_a_trainer_on_a_cpu_keeps_memory_unless_told_otherwise(trainer, monkeypatch, keep) -> None:
    calls = []
    monkeypatch.setattr(trainer_module, "keep_freed_memory", lambda: calls.append(1))
    trainer(keep_memory=keep)
    assert len(calls) == keep
