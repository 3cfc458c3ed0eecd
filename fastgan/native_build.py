"""How the compiled extension is compiled: its sources, flags, compiler and key.

Only the standard library and torch's own headers are needed: no ninja, no CMake. The kernels are
compiled once for every instruction-set level and linked into one library; which level runs is
decided on the machine that runs it, so a library built on one processor serves another.

`setup.py` compiles ahead of time with `compile_library`; `fastgan.native` does so on first use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan.errors import NativeBuildError

MODULE = "_fastgan_cpu"
LIBRARY = f"{MODULE}.so"
RECORD = "build.json"
#: Seconds that all of a build may take; it takes about one core-minute.
BUILD_LIMIT = 300.0
#: Seconds for which a failed build is not tried again by itself.
FAILURE_MEMORY = 24 * 3600.0
COMPILERS = ("c++", "g++", "clang++")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
#: Flags of each instruction-set level of level.cpp. The order does not matter.
X86_LEVELS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avx512": (*_AVX512, "-mprefer-vector-width=512"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mprefer-vector-width=512"),
    "amx_bf16": (
        *_AVX512,
        "-mavx512bf16",
        "-mamx-tile",
        "-mamx-bf16",
        "-mprefer-vector-width=512",
    ),
}
#: Sources compiled once, for any processor of the architecture.
BASE_SOURCES = (
    "memory",
    "arena",
    "pages",
    "parallel",
    "levels",
    "operators",
    "convolution_operators",
    "image_operators",
    "host",
)
#: As these, but with torch's C++ interface: its stable one has no allocators.
TORCH_SOURCES = ("tensor_allocator",)
#: Sources compiled once for every level.
LEVEL_SOURCES = ("level",)

FLAGS = (
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-uninitialized",  # GCC 12 warns of its own AVX-512 headers
    "-Wno-maybe-uninitialized",
    "-DNDEBUG",
    # Where torch's stable interface serves, what PyTorch 2.10 does not have is a compile error.
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)


@dataclass(frozen=True)
class Unit:
    """One compilation: a source file with the flags of its level."""

    source: Path
    flags: tuple[str, ...]
    object_name: str


def levels() -> dict[str, tuple[str, ...]]:
    """Return the levels that this machine's architecture has, with their flags."""
    if platform.machine() in ("x86_64", "AMD64"):
        return X86_LEVELS
    return {"portable": ()}


def source_folder() -> Path | None:
    """Return the folder of the C++ sources: inside the installed package or beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cpu" / "level.cpp").is_file():
            return folder
    return None


def units(sources: Path) -> list[Unit]:
    """List the compilations, the longest first."""
    level_units = [
        Unit(
            sources / "cpu" / f"{source}.cpp",
            (*flags, f"-DFASTGAN_LEVEL={level}"),
            f"{source}.{level}.o",
        )
        for source in LEVEL_SOURCES
        for level, flags in reversed(levels().items())
    ]
    base_units = [
        Unit(sources / "cpu" / f"{source}.cpp", (), f"{source}.o") for source in BASE_SOURCES
    ]
    torch_units = [
        Unit(sources / "cpu" / f"{source}.cpp", ("-UTORCH_TARGET_VERSION",), f"{source}.o")
        for source in TORCH_SOURCES
    ]
    return [*level_units, *torch_units, *base_units]


def source_digest(sources: Path) -> str:
    """Return a digest of every C++ source and of the flags that they are compiled with."""
    named = (LEVEL_SOURCES, TORCH_SOURCES, BASE_SOURCES)
    digest = hashlib.sha256(repr((FLAGS, levels(), named)).encode())
    for path in sorted(sources.rglob("*")):
        if path.suffix in (".h", ".cpp") and path.parent.name != "cuda":
            digest.update(path.relative_to(sources).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_key(sources: Path) -> str:
    """Return what a library must have been built for: sources, torch, Python and machine."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    built_with = f"torch{torch.__version__}-{python}-{machine()}"
    return f"{source_digest(sources)}-{built_with}".replace("/", "_")


def machine() -> str:
    """Return the operating system and processor architecture, as keys name them."""
    return f"{sys.platform}-{platform.machine()}"


def find_compiler() -> str | None:
    """Return the C++ compiler: `$CXX`, or the first of `COMPILERS` on the path."""
    chosen = os.environ.get("CXX")
    if chosen:
        return shutil.which(chosen)
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def missing_compiler() -> str:
    """Say that there is no C++ compiler, and what would help."""
    chosen = os.environ.get("CXX")
    missing = f"CXX={chosen!r} is not a program" if chosen else "no C++ compiler was found"
    return f"{missing}; install g++ (GCC 12 or newer) or set CXX"


def obstacle() -> str | None:
    """Return why nothing can be compiled here, and what would help; None if it can."""
    if not sys.platform.startswith("linux"):
        return f"native kernels are built on Linux only, not on {sys.platform}"
    if source_folder() is None:
        return "the C++ sources (csrc/) are not installed"
    if find_compiler() is None:
        return missing_compiler()
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python.h was not found; install Python's development headers (python3-dev)"
    return None


def _include_flags() -> list[str]:
    torch_headers = Path(torch.__file__).parent / "include"
    folders = (torch_headers, Path(sysconfig.get_paths()["include"]))
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def run_compiler(command: list[str], deadline: float) -> str:
    """Run one compiler process and return what it said.

    Args:
        command: the program and its arguments.
        deadline: of `time.monotonic()`, at which it is stopped.

    Raises:
        NativeBuildError: it failed; the message is its first error.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(1.0, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NativeBuildError(f"{command[0]} took longer than {BUILD_LIMIT:.0f} s") from None
    except OSError as error:
        raise NativeBuildError(f"{command[0]} could not be run: {error}") from None
    told = done.stdout.decode(errors="replace")
    if done.returncode:
        lines = told.strip().splitlines() or ["it said nothing"]
        first = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise NativeBuildError(f"{Path(command[0]).name} failed ({done.returncode}): {first[:300]}")
    return told


def run_compilers(
    commands: list[list[str]], deadline: float, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run compiler processes side by side, one a core; the first that fails ends it.

    Args:
        commands, deadline: as of `run_compiler`.
        progress: called with (commands done, commands in all) as they end.

    Raises:
        NativeBuildError: as `run_compiler`.
    """
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        pending = [pool.submit(run_compiler, command, deadline) for command in commands]
        try:
            for count, finished in enumerate(as_completed(pending), start=1):
                finished.result()
                if progress is not None:
                    progress(count, len(commands))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def compile_library(folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Compile the extension into `folder`, with a record of the build beside it.

    Args:
        folder: an existing folder; objects, the library and `build.json` are written there.
        progress: called with (files compiled, files in all) as the build goes on.

    Returns:
        The library's path.

    Raises:
        NativeBuildError: no compiler, or it failed; the message has its first error.
    """
    reason = obstacle()
    if reason is not None:
        raise NativeBuildError(reason)
    sources, compiler = source_folder(), find_compiler()
    assert sources is not None
    assert compiler is not None
    deadline = time.monotonic() + BUILD_LIMIT
    work, includes = units(sources), _include_flags()
    commands = [
        [compiler, *FLAGS, *unit.flags, *includes,
         "-c", str(unit.source), "-o", str(folder / unit.object_name)]
        for unit in work
    ]  # fmt: skip
    run_compilers(commands, deadline, progress)
    library = folder / LIBRARY
    objects = [str(folder / unit.object_name) for unit in work]
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    linked = (f"-L{torch_libraries}", "-ltorch_cpu", "-lc10")
    run_compiler([compiler, "-shared", *objects, "-o", str(library), *linked], deadline)
    for built in objects:
        Path(built).unlink()
    write_record(folder, build_key(sources), compiler)
    return library


def write_record(folder: Path, key: str, compiler: str, library: str = LIBRARY) -> None:
    """Write what the library in `folder` was built for, its size and its digest."""
    content = (folder / library).read_bytes()
    record = {
        "key": key,
        "torch": torch.__version__,
        "compiler": compiler,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def check_library(folder: Path, key: str, library: str = LIBRARY) -> str | None:
    """Return why the library in `folder` must not be loaded, or None if it is whole and right.

    A truncated library is found by its digest: loading one can kill the process.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        content = (folder / library).read_bytes()
    except (OSError, ValueError):
        return "missing"
    if record.get("key") != key:
        return f"built for other sources, another torch or Python ({record.get('key')})"
    if record.get("sha256") != hashlib.sha256(content).hexdigest():
        return f"damaged ({len(content)} bytes of {record.get('size')})"
    return None


def remembered_failure(failure: Path, present: str | None) -> str | None:
    """Return what a recent build with the same sources and the compiler `present` died of."""
    with contextlib.suppress(OSError):
        if time.time() - failure.stat().st_mtime < FAILURE_MEMORY:
            compiler, _, message = failure.read_text().partition("\n")
            if compiler == str(present):
                again = "`fastgan doctor --build` tries again"
                return f"the last build failed: {message.strip()} ({again})"
    return None
