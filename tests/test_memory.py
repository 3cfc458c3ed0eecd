"""What is freed stays with the process: in the arena for torch's tensors, in glibc's heap else.

Each test is a program in a process of its own: there is no way back from the setting.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastgan import native_build

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux's C library has such a setting"
)
needs_arena = pytest.mark.skipif(
    native_build.obstacle() is not None, reason=str(native_build.obstacle())
)

WITH_ARENA = """
import resource, sys, torch
from fastgan import native
from fastgan.memory import arena, keep_freed_memory
native.build()
assert arena() is None
old = torch.arange(1 << 16)
assert keep_freed_memory()
assert arena()["in_use"] == 0
"""


def run(program: str, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize("native", ["off", pytest.param("auto", marks=needs_arena)])
def test_freed_memory_is_used_again_without_page_faults(native: str) -> None:
    kept = int(run(FAULTS, "keep", FASTGAN_NATIVE=native))
    assert kept < int(run(FAULTS, "give back", FASTGAN_NATIVE=native)) / 5


@needs_arena
def test_tensors_in_the_arena_are_tensors() -> None:
    program = """
import copy, io, pickle
import numpy as np
def rows(): return torch.arange(1 << 16).view(256, 256)  # 512 KiB
one = rows()
assert arena()["in_use"] == 1 << 19
assert torch.equal(one, old.view(256, 256))
del old  # older than the arena
# Grows and shrinks in place.
one.resize_(512, 256)
assert torch.equal(one[:256], rows()) and arena()["in_use"] == 1 << 20
one.resize_(256, 256)
one.untyped_storage().resize_(1 << 18)
assert torch.equal(one.view(-1)[:1 << 15], torch.arange(1 << 15))
one.untyped_storage().resize_(0)
del one
assert arena()["in_use"] == 0
# Copies, views and what shares its memory.
one = rows()
for twin in (one.clone(), copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one._lazy_clone()):
    assert torch.equal(one, twin)
    twin += 1
    assert torch.equal(one, rows())
array, view = one.numpy(), one[5:, ::3]
expected = view.clone()
del one, twin
assert np.array_equal(array, rows().numpy())
del array
assert torch.equal(view, expected)  # keeps the whole block
back = torch.from_numpy(np.ones((256, 256)))
assert torch.equal(torch.from_dlpack(back), back)
del view, expected, back
# Through files and shared memory.
file = io.BytesIO()
torch.save(rows(), file)
file.seek(0)
one = torch.load(file)
one.share_memory_()
assert one.is_shared() and torch.equal(one, rows())
del one
# No bytes, few bytes, odd bytes, very many bytes.
for size in (0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, (1 << 20) + 13):
    block = torch.full((size,), 7, dtype=torch.uint8)
    assert int(block.sum()) == 7 * size and block.data_ptr() % 64 == 0
    assert (arena()["in_use"] > 0) == (size >= 64 << 10)
huge = torch.empty(1 << 30, dtype=torch.uint8)
del block
assert arena()["in_use"] == 0
del huge
state = arena()
assert state["blocks"] == 0 and state["free_blocks"] >= 2  # with memory and without
assert state["most_in_use"] <= state["backed"] <= state["highest"] < 16 << 20
"""
    run(WITH_ARENA + program)


@needs_arena
def test_threads_and_forked_workers_allocate_in_the_arena() -> None:
    program = """
import threading
from torch.utils.data import DataLoader
def work(value):
    for _ in range(200):
        x = torch.full((40000,), float(value))
        assert bool(((x + x).relu() == 2 * value).all())
class Data(torch.utils.data.Dataset):
    def __len__(self): return 24
    def __getitem__(self, i):
        assert arena()["reserved"]
        return torch.full((40000,), float(i)) + 1
def batches():
    for epoch in range(2):
        loader = DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context="fork")
        yield from loader
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
for i, batch in enumerate(batches()):
    assert batch[:, 7].tolist() == [i % 6 * 4 + j + 1.0 for j in range(4)]
for thread in threads: thread.join()
"""
    run(WITH_ARENA + program, OMP_NUM_THREADS="1")


@needs_arena
def test_the_profiler_sees_what_the_arena_gives() -> None:
    program = """
from torch.profiler import ProfilerActivity, profile
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
    x = torch.empty(1 << 20)
    y = torch.empty(64)
    del x
events = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
assert sorted(events) == [-(4 << 20), 256, 4 << 20], events
"""
    run(WITH_ARENA + program)


@needs_arena
@pytest.mark.parametrize("size", ["1 << 20", "1 << 50"])
def test_out_of_memory_is_torchs_error(size: str) -> None:
    program = f"""
block = torch.ones(1 << 16)
# Room neither for the arena to grow nor for the heap; 0 would mean no limit.
resource.setrlimit(resource.RLIMIT_DATA, (4096, resource.RLIM_INFINITY))
held, told = [], None
try:
    while True:
        held.append(torch.empty({size}, dtype=torch.uint8))
except RuntimeError as error:
    told = str(error)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert "DefaultCPUAllocator: can't allocate memory" in told, told
assert bool((block == 1).all()) and len(torch.ones(1 << 26)) == 1 << 26
"""
    run(WITH_ARENA + program)


@needs_arena
def test_limited_addresses_leave_torchs_allocator_in_place() -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (64 << 30, resource.RLIM_INFINITY))
from fastgan import native
from fastgan.memory import arena, keep_freed_memory
import torch
native.build()
keep_freed_memory()
assert arena() is None and len(torch.ones(1 << 20)) == 1 << 20
"""
    run(program)


@needs_arena
def test_a_library_loaded_later_brings_the_arena() -> None:
    program = """
from fastgan import native
found, native._find = native._find, lambda: None  # nothing is compiled yet
from fastgan.memory import arena, keep_freed_memory
keep_freed_memory()
assert arena() is None
native._find = found
import torch
native.build()
block = torch.ones(1 << 20)
assert arena()["in_use"] == 4 << 20
"""
    run(program)
