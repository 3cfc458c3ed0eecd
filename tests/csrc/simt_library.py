"""The CUDA kernels of csrc/cuda, compiled for the host and run thread by thread (simt/simt.cpp).

Test files describe a call as a ctypes record, a twin of the one in csrc/cuda/kernels.h, and read
the results from buffers that fault when a kernel touches what lies behind them.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHIM = Path(__file__).parent / "simt"
SOURCES = Path(__file__).parents[2] / "csrc"
#: The kernel families: csrc/cuda/<name>.cu.
FAMILIES = tuple(sorted(path.stem for path in (SOURCES / "cuda").glob("*.cu")))
COMPILER = shutil.which("g++")
FLAGS = (
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fno-gnu-unique",  # else mutants loaded side by side share their templates' statics
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",  # it forbids longjmp from one stack to another
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",
)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ACTIVATIONS = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")
VARIANTS = ("automatic", "streaming", "resident")


class Device(ctypes.Structure):
    """csrc/cuda/kernels.h: what a launcher knows of the device."""

    _fields_ = (("multiprocessors", ctypes.c_int), ("shared_bytes", ctypes.c_int))


class LaunchError(RuntimeError):
    """A launcher refused, or its kernel did what CUDA forbids."""


@dataclass
class Buffer:
    """A tensor in memory of its own, NaN where nothing was written."""

    tensor: torch.Tensor
    address: int
    size: int


class Library:
    """One compiled shim library: allocates, runs launchers, checks what they leave behind."""

    def __init__(self, path: Path) -> None:
        self._handle = ctypes.CDLL(str(path))
        self._handle.simt_allocate.restype = ctypes.c_void_p
        self._handle.simt_allocate_sparse.restype = ctypes.c_void_p
        self._handle.simt_release.restype = ctypes.c_bool
        self._handle.simt_most_shared.restype = ctypes.c_size_t
        self._handle.simt_error.restype = ctypes.c_char_p
        self._buffers: list[Buffer] = []

    def seed(self, seed: int) -> None:
        """Draw the order of threads and blocks from `seed`."""
        self._handle.simt_seed(ctypes.c_uint64(seed))

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return a contiguous tensor full of NaN, whose end is the end of a page."""
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        return self._on(self._handle.simt_allocate(ctypes.c_size_t(size)), shape, dtype)

    def sparse(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a contiguous tensor of zeros that takes memory only where it is touched.

        Its size must be a multiple of 4096 bytes.
        """
        size = torch.Size(shape).numel() * dtype.itemsize
        address = self._handle.simt_allocate_sparse(ctypes.c_size_t(size))
        if address is None:
            raise MemoryError(f"no {size} bytes of address space, or no multiple of a page")
        return self._on(address, shape, dtype)

    def only_last_block(self, only: bool) -> None:
        """Run only the last block of every grid, or all of them again."""
        self._handle.simt_only_last_block(ctypes.c_bool(only))

    def _on(self, address: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(address)
        tensor = torch.frombuffer(memory, dtype=dtype, count=count).view(tuple(shape))
        self._buffers.append(Buffer(tensor, address, size))
        return tensor

    def copy(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """Return `values` in such a tensor."""
        return None if values is None else self.empty(values.shape, values.dtype).copy_(values)

    def floats(self, launcher: str, *arguments: Any) -> torch.Tensor:
        """Return the workspace that `launcher` asks for."""
        function = getattr(self._handle, f"{launcher}_floats")
        function.restype = ctypes.c_size_t
        return self.empty((function(*map(_argument, arguments)),))

    def run(self, launcher: str, *arguments: Any) -> None:
        """Call `run_<launcher>`.

        Raises:
            LaunchError: the launcher or the shim found something wrong.
        """
        code = getattr(self._handle, f"run_{launcher}")(*map(_argument, arguments))
        message = self._handle.simt_error().decode()
        if code or message:
            raise LaunchError(f"{launcher}: {message or f'refused ({code})'}")

    def most_shared(self) -> int:
        """Return the most shared memory, in bytes, that a block asked for since the last call."""
        return int(self._handle.simt_most_shared())

    def release(self) -> None:
        """Free all buffers.

        Raises:
            LaunchError: something was written before a buffer.
        """
        untouched = [
            self._handle.simt_release(ctypes.c_void_p(buffer.address), ctypes.c_size_t(buffer.size))
            for buffer in self._buffers
        ]
        self._buffers.clear()
        if not all(untouched):
            raise LaunchError("a kernel wrote before the beginning of a buffer")


def _argument(value: Any) -> Any:
    return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Return a tensor's address, null where there is none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def rounding_error(dtype: torch.dtype, steps: int) -> float:
    """Return a bound of the relative error of `steps` roundings in `dtype`; most of them cancel."""
    return 4 * torch.finfo(dtype).eps * max(steps, 1) ** 0.5


def _compile(source: Path, target: Path) -> Path:
    command = [
        str(COMPILER),
        *FLAGS,
        f"-I{SHIM}",
        "-x",
        "c++",
        "-c",
        str(source),
        "-o",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr[:2000]}")
    return target


def _link(objects: Iterable[Path], target: Path) -> Library:
    command = [str(COMPILER), "-shared", *map(str, objects), "-o", str(target)]
    subprocess.run(command, check=True)
    return Library(target)


def compile_shim(folder: Path) -> dict[str, Path]:
    """Compile the shim and every kernel family into `folder`; return the objects by name."""
    sources = {name: SOURCES / "cuda" / f"{name}.cu" for name in FAMILIES}
    sources |= {name: SHIM / f"{name}.cpp" for name in ("simt", "entry")}
    sources["faults"] = SHIM / "faults.cu"
    with ThreadPoolExecutor(2) as pool:
        objects = {
            name: pool.submit(_compile, source, folder / f"{name}.o")
            for name, source in sources.items()
        }
        return {name: compiled.result() for name, compiled in objects.items()}


def link_shim(objects: dict[str, Path], folder: Path) -> Library:
    """Link compiled objects into a library and load it."""
    return _link(objects.values(), folder / "kernels.so")


BARRIER = re.compile(
    r"__syncthreads\(\)|__syncwarp\([^)]*\)|cooperative_groups::this_grid\(\)\.sync\(\)"
)


@dataclass(frozen=True)
class Barrier:
    """One barrier in the sources: the file in csrc/cuda and the how manieth it is there."""

    file: str
    index: int

    def __str__(self) -> str:
        return f"{self.file}-{self.index}"


def barriers() -> list[Barrier]:
    """List every barrier of every kernel."""
    files = sorted((SOURCES / "cuda").glob("*.cu*"))
    return [
        Barrier(path.name, index)
        for path in files
        for index, _ in enumerate(BARRIER.finditer(path.read_text()))
    ]


def compile_without(
    barrier: Barrier, family: str, objects: dict[str, Path], folder: Path
) -> Library:
    """Compile a kernel family without one barrier and link it to everything else.

    Args:
        barrier: the one to leave out.
        family: a name in FAMILIES whose kernels contain it.
        objects: what `compile_shim` returned.
        folder: empty, for the changed sources.
    """
    shutil.copytree(SOURCES / "common", folder / "csrc" / "common")
    shutil.copytree(SOURCES / "cuda", folder / "csrc" / "cuda")
    path = folder / "csrc" / "cuda" / barrier.file
    text = path.read_text()
    match = list(BARRIER.finditer(text))[barrier.index]
    path.write_text(f"{text[: match.start()]}(void)0{text[match.end() :]}")
    changed = _compile(folder / "csrc" / "cuda" / f"{family}.cu", folder / f"{family}.o")
    return _link((objects | {family: changed}).values(), folder / "mutant.so")
