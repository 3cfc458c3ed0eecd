"""The extension is found, built or done without: whatever goes wrong, the program works.

A build takes a core-minute, so all but one of these tests compile with a program that pretends to:
it hands out the library that the session has really built.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgan import native, native_build

pytestmark = pytest.mark.skipif(
    native_build.obstacle() is not None, reason=str(native_build.obstacle())
)

# A program that wants the kernels and works without them.
PROGRAM = """
import pathlib, torch
from fastgan import native, native_kernels
# As where nothing was compiled at install.
native.installed_folder = lambda: pathlib.Path("none")
reason = native_kernels.usable()
x = torch.linspace(-2, 2, 12).view(2, 3, 1, 2).contiguous(memory_format=torch.channels_last)
if reason is None:
    y = native_kernels.bias_act_forward(x, None, activation="relu", negative_slope=0.0)
    print("native", native.extension().origin)
else:
    y = torch.relu(x)
    print("fallback", reason)
assert torch.equal(y, x.clamp(min=0))
"""


@pytest.fixture(scope="session")
def real_library() -> Path:
    """The library, built once into the user's own cache."""
    return native.build().folder / native_build.LIBRARY


@pytest.fixture
def pretended_compiler(tmp_path: Path, real_library: Path) -> Path:
    """A compiler that takes `$PRETEND_SECONDS` a file and links to the real library."""
    script = tmp_path / "pretended-c++"
    script.write_text(
        f"""#!{sys.executable} -S
import os, shutil, sys, time
time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
target = sys.argv[sys.argv.index("-o") + 1]
if "-shared" in sys.argv:
    shutil.copyfile({str(real_library)!r}, target)
else:
    open(target, "w").close()
with open({str(tmp_path / "compiled.log")!r}, "a") as log:
    log.write(target + "\\n")
"""
    )
    script.chmod(0o755)
    return script


def environment(cache: Path, **changes: str) -> dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FASTGAN") and name != "CXX"
    }
    return clean | {"FASTGAN_CACHE": str(cache), "OMP_NUM_THREADS": "1"} | changes


def run(cache: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(cache, **changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def start(cache: Path, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment(cache, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("fastgan:")]


def wait_for(happened, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def library_in(cache: Path) -> Path:
    (found,) = (cache / "native").glob(f"*/{native_build.LIBRARY}")
    return found


def test_importing_fastgan_neither_loads_nor_builds_anything(tmp_path: Path) -> None:
    code = (
        "import sys, fastgan, fastgan.native, fastgan.native_kernels\n"
        "assert '_fastgan_cpu' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), check=True, timeout=120)
    assert not list(tmp_path.iterdir())


def test_first_use_builds_once_and_the_next_process_loads(
    tmp_path: Path, pretended_compiler: Path
) -> None:
    cache = tmp_path / "cache"
    first = run(cache, CXX=str(pretended_compiler))
    assert first.stdout == "native built\n", first
    assert len(lines(first)) == 2  # compiling ..., compiled in ...
    second = run(cache, CXX=str(pretended_compiler))
    assert (second.stdout, lines(second)) == ("native cache\n", [])
    assert not [path for path in (cache / "native").iterdir() if path.name.startswith(".")]


def test_two_processes_at_once_build_once(tmp_path: Path, pretended_compiler: Path) -> None:
    cache = tmp_path / "cache"
    settings = {"CXX": str(pretended_compiler), "PRETEND_SECONDS": "0.3"}
    both = [start(cache, **settings) for _ in range(2)]
    answers = sorted(process.communicate(timeout=120)[0] for process in both)
    assert answers in (["native built\n", "native cache\n"], ["native built\n", "native built\n"])
    linked = (tmp_path / "compiled.log").read_text().count(native_build.LIBRARY)
    assert linked == 1


def test_a_build_killed_in_the_middle_blocks_nobody(
    tmp_path: Path, pretended_compiler: Path
) -> None:
    cache = tmp_path / "cache"
    victim = start(cache, CXX=str(pretended_compiler), PRETEND_SECONDS="20")
    wait_for(lambda: list((cache / "native").glob(".*")) if cache.exists() else False)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    began = time.monotonic()
    after = run(cache, CXX=str(pretended_compiler))
    assert after.stdout == "native built\n", after
    assert time.monotonic() - began < 60
    assert not list((cache / "native").glob(".*"))


def test_a_process_that_waits_takes_over_from_a_killed_builder(
    tmp_path: Path, pretended_compiler: Path
) -> None:
    cache = tmp_path / "cache"
    victim = start(cache, CXX=str(pretended_compiler), PRETEND_SECONDS="30")
    wait_for(lambda: list((cache / "native").glob(".*")) if cache.exists() else False)
    heir = start(cache, CXX=str(pretended_compiler))
    assert heir.stderr is not None
    assert "waiting for another process" in heir.stderr.readline()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert heir.communicate(timeout=60)[0] == "native built\n"


def test_no_compiler_is_one_line_and_a_program_that_works(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(tmp_path / "cache", PATH=str(empty))
    assert done.stdout.startswith("fallback no C++ compiler was found; install g++"), done
    assert len(lines(done)) == 1


def test_a_compiler_that_fails_is_told_once_and_not_run_again(tmp_path: Path) -> None:
    failing = tmp_path / "failing-c++"
    failing.write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs\necho 'x.cpp:1: error: no such ISA' >&2\nexit 1\n"
    )
    failing.chmod(0o755)
    first = run(tmp_path / "cache", CXX=str(failing))
    assert first.returncode == 0
    assert "x.cpp:1: error: no such ISA" in first.stdout
    assert len(lines(first)) == 2
    runs = (tmp_path / "runs").read_text()
    second = run(tmp_path / "cache", CXX=str(failing))
    assert second.stdout.startswith("fallback the last build failed")
    assert "fastgan doctor --build" in second.stderr
    assert (tmp_path / "runs").read_text() == runs


def test_status_tells_of_the_last_failure(tmp_path: Path, monkeypatch) -> None:
    for name, value in (("_extension", None), ("_reason", None), ("_tried_to_build", False)):
        monkeypatch.setattr(native, name, value)
    monkeypatch.setattr(native, "installed_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.delenv("FASTGAN_NATIVE", raising=False)
    assert "not built yet" in str(native.status().reason)
    with pytest.raises(native_build.NativeBuildError, match="false failed"):
        native.build()
    reason = str(native.status().reason)
    assert reason.startswith("the last build failed: false failed")
    assert reason.endswith("(`fastgan doctor --build` tries again)")


def test_another_compiler_is_tried_after_a_failure(
    tmp_path: Path, pretended_compiler: Path
) -> None:
    assert run(tmp_path / "cache", CXX="/bin/false").stdout.startswith("fallback")
    assert run(tmp_path / "cache", CXX=str(pretended_compiler)).stdout == "native built\n"


def test_require_makes_absence_an_error(tmp_path: Path) -> None:
    done = run(tmp_path / "cache", CXX="/bin/false", FASTGAN_NATIVE="require")
    assert done.returncode == 1
    assert "NativeBuildError: FASTGAN_NATIVE=require: false failed" in done.stderr


def test_off_loads_nothing_and_says_nothing(tmp_path: Path, pretended_compiler: Path) -> None:
    done = run(tmp_path / "cache", CXX=str(pretended_compiler), FASTGAN_NATIVE="off")
    assert (done.stdout, lines(done)) == ("fallback FASTGAN_NATIVE=off\n", [])
    assert not (tmp_path / "cache").exists()


def test_an_unknown_mode_names_what_is_allowed(tmp_path: Path) -> None:
    done = run(tmp_path / "cache", FASTGAN_NATIVE="maybe")
    assert "FASTGAN_NATIVE='maybe' is not known; allowed: auto, off, require" in done.stderr


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, pretended_compiler: Path
) -> None:
    # A file where the folder should be: refuses everyone, the superuser too.
    (tmp_path / "cache").write_text("")
    done = run(tmp_path / "cache", CXX=str(pretended_compiler))
    assert done.stdout.startswith("fallback the cache"), done
    assert "set FASTGAN_CACHE" in done.stdout
    assert len(lines(done)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for the superuser")
def test_a_read_only_cache_is_one_line(tmp_path: Path, pretended_compiler: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = run(cache, CXX=str(pretended_compiler))
    assert done.stdout.startswith("fallback the cache"), done
    assert len(lines(done)) == 1


@pytest.mark.parametrize("keep", [0, 4096, -1], ids=["empty", "a page", "all but a byte"])
def test_a_truncated_library_is_rebuilt(
    tmp_path: Path, pretended_compiler: Path, keep: int
) -> None:
    cache = tmp_path / "cache"
    run(cache, CXX=str(pretended_compiler))
    library = library_in(cache)
    whole = library.read_bytes()
    library.write_bytes(whole[:keep])
    done = run(cache, CXX=str(pretended_compiler))
    assert done.stdout == "native built\n", done
    assert library.read_bytes() == whole


def test_a_library_without_its_record_is_rebuilt(tmp_path: Path, pretended_compiler: Path) -> None:
    cache = tmp_path / "cache"
    run(cache, CXX=str(pretended_compiler))
    (library_in(cache).parent / native_build.RECORD).unlink()
    assert run(cache, CXX=str(pretended_compiler)).stdout == "native built\n"


def test_another_torch_version_has_a_library_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_library: Path
) -> None:
    sources = native_build.source_folder()
    assert sources is not None
    key = native_build.build_key(sources)
    assert native_build.check_library(real_library.parent, key) is None
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    changed = native_build.build_key(sources)
    assert changed != key
    reason = native_build.check_library(real_library.parent, changed)
    assert reason is not None
    assert reason.startswith("built for other sources, another torch")


def test_a_changed_source_has_a_library_of_its_own(tmp_path: Path) -> None:
    sources = native_build.source_folder()
    assert sources is not None
    copy = tmp_path / "csrc"
    shutil.copytree(sources, copy)
    before = native_build.source_digest(copy)
    assert before == native_build.source_digest(sources)
    header = copy / "common" / "activation.h"
    header.write_text(header.read_text() + "\n")
    assert native_build.source_digest(copy) != before


def level_from_the_environment(level: str) -> subprocess.CompletedProcess[str]:
    code = "from fastgan import native; print(native.extension().module.level())"
    cache = native.cache_folder().parent
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(cache, FASTGAN_NATIVE_LEVEL=level)
        if os.environ.get("FASTGAN_CACHE")
        else {**os.environ, "FASTGAN_NATIVE_LEVEL": level},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_level_can_be_forced_from_the_environment(real_library: Path) -> None:
    for level in native.build().module.levels():
        done = level_from_the_environment(level)
        assert done.stdout.strip() == level, done.stderr


def test_an_unknown_level_in_the_environment_is_named_with_its_variable(real_library: Path) -> None:
    usable = ", ".join(native.build().module.levels())
    done = level_from_the_environment("mmx")
    expected = f"FASTGAN_NATIVE_LEVEL='mmx' cannot run here; usable: {usable}"
    assert done.stderr.strip().endswith(expected)


def test_a_level_that_cannot_run_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="instruction-set level 'mmx' cannot run here; usable: "),
        native.forced_level("mmx"),
    ):
        pass


def test_status_tells_what_is_loaded(real_library: Path) -> None:
    status = native.status()
    assert status.usable
    assert status.reason is None
    assert status.folder == real_library.parent
    assert status.level in status.levels
    assert status.levels[-1] == "portable"
    assert native.build().module.threads() == torch.get_num_threads()
    assert native.build().module.build_info()["torch_target_version"] == 0x020A000000000000


def test_status_describes_every_compiled_level(real_library: Path) -> None:
    status = native.status()
    compiled = {level.name: level for level in status.compiled}
    assert set(compiled) == set(native_build.levels())
    assert tuple(level.name for level in status.compiled if level.usable) == status.levels
    assert compiled["portable"].vector_bits == 128
    assert set(compiled["portable"].register_tiles) == {"float32"}
    if "avx512_bf16" in compiled:
        assert compiled["avx2"].register_tiles == {"float32": (6, 16)}
        assert compiled["avx512"].register_tiles == {"float32": (6, 64)}
        both = {"float32": (6, 64), "bfloat16": (6, 64)}
        assert compiled["avx512_bf16"].register_tiles == both
        assert compiled["amx_bf16"].register_tiles == both | {"bfloat16": (32, 32)}
        assert {level.vector_bits for level in status.compiled} == {128, 256, 512}
    # A tile and one vector more fit into the registers: 16, or 32 with AVX-512.
    for level in status.compiled:
        rows, columns = level.register_tiles["float32"]
        registers = 32 if level.vector_bits == 512 else 16
        assert rows * columns * 32 < registers * level.vector_bits


def test_levels_define_nothing_outside_their_namespace(tmp_path: Path) -> None:
    """A function of the AVX-512 level must not be linked in place of the portable one."""
    compiler, sources = native_build.find_compiler(), native_build.source_folder()
    symbols = shutil.which("nm")
    assert compiler is not None
    assert sources is not None
    if symbols is None:
        pytest.skip("nm is not installed")
    (unit,) = [unit for unit in native_build.units(sources) if unit.object_name == "level.avx2.o"]
    target = tmp_path / unit.object_name
    command = [compiler, *native_build.FLAGS, "-O1", *unit.flags, "-c", str(unit.source)]
    subprocess.run([*command, "-o", str(target)], check=True, timeout=300)
    listed = subprocess.run(
        [symbols, "-C", "--defined-only", "--extern-only", str(target)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # The second is how it reads in names too long for nm to demangle.
    own = ("fastgan::cpu::avx2::", "N7fastgan3cpu4avx2")
    foreign = [line for line in listed.splitlines() if not any(name in line for name in own)]
    assert not foreign
