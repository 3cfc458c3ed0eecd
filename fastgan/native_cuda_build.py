"""How the CUDA library is compiled: its sources, flags, chips and key; what its kernels use.

A library of its own: it needs libtorch_cuda and a driver, so it is loaded only where CUDA is, and
the CPU kernels of `fastgan.native` never depend on it. The sources use the CUDA runtime and torch's
stable ABI alone, so they compile on a machine without a GPU and against a PyTorch without CUDA.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan import native_build
from fastgan.errors import NativeBuildError

LIBRARY = "libfastgan_cuda.so"
#: csrc/cuda/<name>.cu: one kernel family each.
FAMILIES = (
    "batch_norm_backward",
    "batch_norm_forward",
    "image_dgrad",
    "bias_act",
    "adversarial_loss",
    "image_wgrad",
    "image_fprop",
    "pack_weights",
)
#: csrc/cuda/<name>.cpp: what torch and Python call.
HOST_SOURCES = ("operators", "attributes")
#: Chips with machine code of their own; others compile the PTX of the oldest when they load it.
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
FLAGS = ("-std=c++20", "-O3")
HOST_FLAGS = (
    "-DUSE_CUDA",
    # What PyTorch 2.10 does not have is a compile error.
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
)
#: The first CUDA that knows sm_100.
OLDEST_CUDA = (12, 8)

#: What a kernel may use, whatever the chip. Registers: a column or product kernel runs two blocks
#: of 256 threads on a multiprocessor; batch norm's shared memory is cut to the chip when launched.
REGISTERS_LIMIT = 128
#: Dynamic shared memory that a block may ask for, in bytes, by family. Batch norm's resident
#: kernels are cut to the chip: two of their blocks always fit on a multiprocessor.
SHARED_LIMITS = {
    "adversarial_loss": 64,
    "bias_act": 8192,
    "image_dgrad": 4096,
    "image_fprop": 8704,
    "image_wgrad": 8704,
    "pack_weights": 4160,
    "batch_norm_forward": 227 * 1024 // 2,
    "batch_norm_backward": 227 * 1024 // 2,
}


@dataclass(frozen=True)
class KernelResources:
    """What ptxas says of one kernel on one chip.

    Attributes:
        architecture: a name in `ARCHITECTURES`.
        family: the source file.
        kernel: name and template arguments.
        registers: of a thread.
        spill_bytes: stored to and loaded from local memory, and the stack frame, in bytes.
        static_shared_bytes: beside the dynamic shared memory that the launcher asks for.
    """

    architecture: str
    family: str
    kernel: str
    registers: int
    spill_bytes: int
    static_shared_bytes: int


def source_folder() -> Path | None:
    """Return the folder of the CUDA sources, inside the installed package or beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "csrc" / "cuda", package.parent / "csrc" / "cuda"):
        if (folder / "operators.cpp").is_file():
            return folder
    return None


def find_nvcc() -> str | None:
    """Return `$CUDACXX`, the nvcc on the path, or the one under `$CUDA_HOME`."""
    chosen = os.environ.get("CUDACXX")
    if chosen:
        return shutil.which(chosen)
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(Path(home, "bin", "nvcc")))


def nvcc_version(nvcc: str) -> tuple[int, int]:
    """Return (major, minor) of the CUDA toolkit that `nvcc` belongs to; (0, 0) if it cannot say."""
    try:
        told = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    release = re.search(r"release (\d+)\.(\d+)", told)
    return (int(release[1]), int(release[2])) if release else (0, 0)


def wanted_at_install(choice: str, torch_cuda: str | None = torch.version.cuda) -> bool:
    """Return whether installing should compile the kernels.

    Args:
        choice: FASTGAN_BUILD_CUDA: "on", "off", or "auto": where they could be used.
        torch_cuda: the version of CUDA that torch is built with, None for a torch without.
    """
    return choice == "on" or (choice == "auto" and torch_cuda is not None)


def compiler_obstacle() -> str | None:
    """Return why the kernels cannot be compiled for this torch, and what would help, or None."""
    obstacle = toolkit_obstacle()
    nvcc, torch_cuda = find_nvcc(), torch.version.cuda
    if obstacle is not None or nvcc is None or torch_cuda is None:
        return obstacle
    # Programs of a newer CUDA ask for a newer driver than the one that suffices for torch.
    major = int(torch_cuda.partition(".")[0])
    if nvcc_version(nvcc)[0] > major:
        return (
            f"{nvcc} is of CUDA {_dotted(nvcc_version(nvcc))}, this PyTorch of CUDA {torch_cuda}; "
            f"set CUDACXX to an nvcc of CUDA {major}"
        )
    return None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def toolkit_obstacle() -> str | None:
    """Return why nothing can be compiled for a GPU here, and what would help, or None."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA kernels are built on Linux only, not on {sys.platform}"
    if source_folder() is None:
        return "the CUDA sources (csrc/cuda) are not installed"
    oldest, nvcc = _dotted(OLDEST_CUDA), find_nvcc()
    if nvcc is None:
        chosen = os.environ.get("CUDACXX")
        missing = f"CUDACXX={chosen!r} is not a program" if chosen else "no nvcc was found"
        return f"{missing}; install the CUDA toolkit ({oldest} or newer) or set CUDACXX to its nvcc"
    version = nvcc_version(nvcc)
    if version == (0, 0):
        return f"{nvcc} does not say its version; set CUDACXX to an nvcc of CUDA {oldest} or newer"
    if version < OLDEST_CUDA:
        return f"{nvcc} is of CUDA {_dotted(version)}; set CUDACXX to one of {oldest} or newer"
    if native_build.find_compiler() is None:
        return native_build.missing_compiler()
    return None


def build_key(sources: Path) -> str:
    """Return what a library must have been built for: sources, flags, torch and machine."""
    digest = hashlib.sha256(
        repr((FLAGS, HOST_FLAGS, FAMILIES, HOST_SOURCES, ARCHITECTURES)).encode()
    )
    for folder in (sources, sources.parent / "common"):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
    machine = native_build.machine()
    return f"cuda-{digest.hexdigest()[:16]}-torch{torch.__version__}-{machine}".replace("/", "_")


def code_flags(architectures: Iterable[str], ptx: bool) -> list[str]:
    """Return nvcc's flags for machine code of `architectures`, and PTX of the first with `ptx`."""
    names = [name.removeprefix("sm_") for name in architectures]
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    if ptx:
        flags.append(f"-gencode=arch=compute_{names[0]},code=compute_{names[0]}")
    return flags


def compile_library(folder: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """Compile the CUDA library into `folder`, with a record of the build beside it.

    Args:
        folder: an existing folder; objects, the library and `build.json` are written there.
        progress: called with (files compiled, files in all) as the build goes on.

    Returns:
        The library's path.

    Raises:
        NativeBuildError: no nvcc, or it failed; the message has its first error.
    """
    reason = compiler_obstacle()
    if reason is not None:
        raise NativeBuildError(reason)
    sources, nvcc, host = source_folder(), find_nvcc(), native_build.find_compiler()
    assert sources is not None
    assert nvcc is not None
    assert host is not None
    key = build_key(sources)  # of what is read now, should a source change meanwhile
    deadline = time.monotonic() + native_build.BUILD_LIMIT
    torch_folder = Path(torch.__file__).parent
    base = [nvcc, *FLAGS, *HOST_FLAGS, "-ccbin", host, "-isystem", str(torch_folder / "include")]
    work = {folder / f"{name}.o": sources / f"{name}.cu" for name in FAMILIES}
    work |= {folder / f"{name}.o": sources / f"{name}.cpp" for name in HOST_SOURCES}
    code = code_flags(ARCHITECTURES, ptx=True)
    commands = [
        [*base, *code, "-c", str(source), "-o", str(target)] for target, source in work.items()
    ]
    native_build.run_compilers(commands, deadline, progress)
    library = folder / LIBRARY
    wanted = [name for name in ("torch_cpu", "torch_cuda") if _has(torch_folder / "lib", name)]
    native_build.run_compiler(
        [nvcc, "-shared", "-ccbin", host, *map(str, work), "-o", str(library),
         f"-L{torch_folder / 'lib'}", *(f"-l{name}" for name in wanted)],
        deadline,
    )  # fmt: skip
    for built in work:
        built.unlink()
    native_build.write_record(folder, key, nvcc, LIBRARY)
    return library


def _has(folder: Path, library: str) -> bool:
    return (folder / f"lib{library}.so").is_file()


_FUNCTION = re.compile(
    r"Function properties for (?P<name>\S+)\s+"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\s+ptxas info\s+: Used (?P<registers>\d+) registers"
    r"(?P<rest>[^\n]*)"
)


def resources(
    architectures: Iterable[str] = ARCHITECTURES, families: Iterable[str] = FAMILIES
) -> list[KernelResources]:
    """Compile the kernels for each chip and return what each of them uses; needs no GPU.

    Raises:
        NativeBuildError: no nvcc, or it failed.
    """
    reason = toolkit_obstacle()
    if reason is not None:
        raise NativeBuildError(reason)
    sources, nvcc = source_folder(), find_nvcc()
    assert sources is not None
    assert nvcc is not None
    deadline = time.monotonic() + native_build.BUILD_LIMIT
    pairs = [(architecture, family) for family in families for architecture in architectures]

    def inspect(pair: tuple[str, str], folder: str) -> list[KernelResources]:
        architecture, family = pair
        target = Path(folder, f"{family}.{architecture}.cubin")
        told = native_build.run_compiler(
            [nvcc, *FLAGS, *code_flags([architecture], ptx=False), "-Xptxas=-v", "-cubin",
             str(sources / f"{family}.cu"), "-o", str(target)],
            deadline,
        )  # fmt: skip
        return [_parsed(architecture, family, found) for found in _FUNCTION.finditer(told)]

    workers = max(1, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        tables = list(pool.map(lambda pair: inspect(pair, folder), pairs))
    return [row for table in tables for row in table]


def _parsed(architecture: str, family: str, found: re.Match[str]) -> KernelResources:
    shared = re.search(r"(\d+) bytes smem", found["rest"])
    return KernelResources(
        architecture,
        family,
        readable(found["name"]),
        int(found["registers"]),
        sum(int(found[name]) for name in ("stack", "stores", "loads")),
        int(shared[1]) if shared else 0,
    )


def readable(mangled: str) -> str:
    """Return "kernel<arguments>" of a kernel's mangled name."""
    kernel = re.search(r"\d+([a-z_]+_kernel)(.*)", mangled)
    if kernel is None:
        return mangled
    element = next((n for n in ("BFloat16", "Float16") if n in kernel[2]), "float")
    numbers = re.findall(r"Li(\d+)E", kernel[2])
    return f"{kernel[1]}<{', '.join([element, *numbers])}>"


def violations(row: KernelResources) -> list[str]:
    """Return what a kernel uses beyond its budget; empty if it keeps to it."""
    found = []
    if row.spill_bytes:
        found.append(f"{row.spill_bytes} bytes of spills")
    if row.registers > REGISTERS_LIMIT:
        found.append(f"{row.registers} registers, more than {REGISTERS_LIMIT}")
    if row.static_shared_bytes:
        found.append(f"{row.static_shared_bytes} bytes of shared memory unknown to its launcher")
    return found
