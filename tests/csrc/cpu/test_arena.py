"""The arena of torch's tensors (csrc/cpu/arena.cpp, pages.cpp) alone, under the sanitizers.

arena_harness.cpp draws allocations and compares them with a plain model of where blocks go and
which pages have memory, and that with what the system says is resident.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fastgan import native_build

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
    native_build.obstacle() is not None, reason=str(native_build.obstacle())
)


def build(folder: Path, sanitizers: str) -> Path:
    compiler, sources = native_build.find_compiler(), native_build.source_folder()
    assert compiler is not None
    assert sources is not None
    flags = ("-O1", "-g1", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    kept = [flag for flag in native_build.FLAGS if "TORCH" not in flag and flag != "-O2"]
    program = folder / "arena_harness"
    parts = [str(sources / "cpu" / f"{name}.cpp") for name in ("arena", "pages")]
    files = [str(HERE / "arena_harness.cpp"), *parts]
    command = [compiler, *kept, *flags, *files, "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    return program


@pytest.fixture(scope="session")
def addresses_checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("arena"), "address,undefined")


@pytest.fixture(scope="session")
def threads_checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("arena"), "thread")


def run(program: Path, check: str, seed: int) -> None:
    command = [str(program), check, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def moving(addresses_checked: Path) -> Path:
    done = subprocess.run([str(addresses_checked), "moves", "1"], timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip("this system does not move pages and keep their addresses (Linux 5.7 does)")
    return addresses_checked


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_more_memory_than_was_ever_in_use_is_resident_and_blocks_keep_their_contents(
    moving: Path, seed: int
) -> None:
    run(moving, "model", seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_system_that_moves_no_pages_has_best_fit(addresses_checked: Path, seed: int) -> None:
    run(addresses_checked, "unmoved", seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_pages_take_their_contents_along_and_a_move_knows_the_systems_mappings(
    moving: Path, seed: int
) -> None:
    run(moving, "pages", seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_pages_that_move_for_ever_leave_few_mappings(moving: Path, seed: int) -> None:
    run(moving, "mappings", seed)


def test_what_the_system_refuses_leaves_the_arena_whole(addresses_checked: Path) -> None:
    run(addresses_checked, "refusals", 1)


def test_a_child_forked_while_threads_allocate_can_allocate(addresses_checked: Path) -> None:
    run(addresses_checked, "forks", 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_threads_do_not_race(threads_checked: Path, seed: int) -> None:
    run(threads_checked, "threads", seed)
