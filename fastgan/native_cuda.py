"""Finds, builds or loads the CUDA library (csrc/cuda): the CUDA C++ kernels.

The same places and the same rules as in `fastgan.native` (FASTGAN_NATIVE, a cache keyed by what the
library was built for, a lock that ends with its process), but a library of its own, which is
touched only where PyTorch sees a CUDA device. Importing this module touches nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan import native, native_build, native_cuda_build
from fastgan.errors import NativeBuildError
from fastgan.native_progress import say


@dataclass(frozen=True)
class Status:
    """What `fastgan doctor` says about the CUDA kernels.

    Attributes:
        usable: True if the kernels are loaded.
        reason: why they are not, or None.
        folder: of the loaded library, or None.
        nvcc: the compiler that a build would use, or None.
        nvcc_version: (major, minor) of its CUDA toolkit, or None.
        architectures: chips with machine code of their own.
    """

    usable: bool
    reason: str | None
    folder: Path | None
    nvcc: str | None
    nvcc_version: tuple[int, int] | None
    architectures: tuple[str, ...]


@dataclass(frozen=True)
class KernelAttributes:
    """What the CUDA runtime says of one kernel on the current device.

    Attributes:
        kernel: name and template arguments.
        registers: of a thread.
        static_shared_bytes: of a block, beside what a launcher asks for.
        local_bytes: of a thread; registers that were spilt lie there.
        most_threads: that a block may have.
    """

    kernel: str
    registers: int
    static_shared_bytes: int
    local_bytes: int
    most_threads: int


_lock = threading.RLock()
_folder: Path | None = None  # of the loaded library
_reason: str | None = None  # why there is none; final for this process
_tried = False


def obstacle() -> str | None:
    """Return why the CUDA kernels cannot run here whatever is built, or None."""
    if native.mode() == "off":
        return "FASTGAN_NATIVE=off"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    return None


def usable(*, compiling: bool = True) -> str | None:
    """Return why the CUDA kernels cannot be called, or None if they can.

    The first call loads them, and may compile them, which takes about a minute.

    Args:
        compiling: False to load only what is compiled already.

    Raises:
        NativeBuildError: FASTGAN_NATIVE=require, and they cannot be had although CUDA is there.
    """
    global _reason, _tried
    if _folder is not None or _tried:
        return _reason
    with _lock:
        if not _tried:
            _reason = obstacle()
            if _reason is None:
                try:
                    found = _find()
                    if found is None and not compiling:
                        told = native_cuda_build.compiler_obstacle() or _last_failure()
                        return told or "not compiled yet (`fastgan doctor --build` does it)"
                    _load(found or _build_once())
                except NativeBuildError as error:
                    if native.mode() == "require":
                        raise NativeBuildError(f"FASTGAN_NATIVE=require: {error}") from error
                    _reason = str(error)
                    say(f"CUDA C++ kernels are off, others serve instead: {error}")
            _tried = True
        return _reason


def build() -> None:
    """Load the kernels, compiling them if need be and forgetting earlier failures.

    Raises:
        NativeBuildError: they cannot run here, or cannot be compiled or loaded.
    """
    global _reason, _tried
    with _lock:
        if _folder is None:
            reason = obstacle()
            if reason is not None:
                raise NativeBuildError(reason)
            _load(_find() or _build_once(forget_failure=True))
            _reason, _tried = None, True


def status() -> Status:
    """Describe the state of the CUDA kernels without building anything."""
    reason = usable(compiling=False)
    nvcc = native_cuda_build.find_nvcc()
    return Status(
        usable=_folder is not None,
        reason=reason,
        folder=_folder,
        nvcc=nvcc,
        nvcc_version=None if nvcc is None else native_cuda_build.nvcc_version(nvcc),
        architectures=native_cuda_build.ARCHITECTURES,
    )


def kernel_attributes() -> list[KernelAttributes]:
    """Return what the runtime says of every loaded kernel on the current device.

    Raises:
        RuntimeError: the kernels are not loaded, or the runtime refuses; the message says why.
    """
    if _folder is None:
        raise RuntimeError(f"the CUDA kernels are not loaded: {_reason or 'not asked for yet'}")
    return attributes_of(_folder / native_cuda_build.LIBRARY)


class _Attributes(ctypes.Structure):
    """csrc/cuda/attributes.cpp: what it fills in."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("registers", ctypes.c_int64),
        ("static_shared_bytes", ctypes.c_int64),
        ("local_bytes", ctypes.c_int64),
        ("most_threads", ctypes.c_int64),
    )


def attributes_of(path: Path) -> list[KernelAttributes]:
    """`kernel_attributes` of the library at `path`, which torch has loaded."""
    library = ctypes.CDLL(str(path))
    ask = library.fastgan_cuda_kernel_attributes
    ask.restype = ctypes.c_char_p
    found = []
    for index in range(library.fastgan_cuda_kernel_count()):
        told = _Attributes()
        error = ask(index, ctypes.byref(told))
        if error is not None:
            raise RuntimeError(f"the CUDA runtime says nothing of its kernels: {error.decode()}")
        found.append(
            KernelAttributes(
                native_cuda_build.readable(told.name.decode()),
                told.registers,
                told.static_shared_bytes,
                told.local_bytes,
                told.most_threads,
            )
        )
    return sorted(found, key=lambda attributes: attributes.kernel)


def folder() -> Path | None:
    """Return where the loaded library lies, or None."""
    return _folder


def _key() -> str:
    sources = native_cuda_build.source_folder()
    if sources is None:
        raise NativeBuildError("the CUDA sources (csrc/cuda) are not installed")
    return native_cuda_build.build_key(sources)


def _is_whole(folder: Path) -> bool:
    return native_build.check_library(folder, _key(), native_cuda_build.LIBRARY) is None


def _find() -> Path | None:
    """Return the folder of the right library: in the package or in the cache."""
    for candidate in (native.installed_folder() / "cuda", native.cache_folder() / _key()):
        if _is_whole(candidate):
            return candidate
    return None


def _load(folder: Path) -> None:
    global _folder
    try:
        torch.ops.load_library(str(folder / native_cuda_build.LIBRARY))
    except (OSError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise NativeBuildError(f"the CUDA library could not be loaded: {first}") from error
    _folder = folder


def _build_once(*, forget_failure: bool = False) -> Path:
    """Compile the library into the cache, or wait for the process that is doing so."""
    reason = native_cuda_build.compiler_obstacle()
    if reason is not None:
        raise NativeBuildError(reason)
    root, key = native.cache_folder(), _key()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with native.exclusive(root / f"{key}.lock", "CUDA"):
            if not _is_whole(root / key):
                told = _last_failure()
                if told is not None and not forget_failure:
                    raise NativeBuildError(told)
                failure = _failure_file()
                try:
                    _compile_into(root, key)
                except NativeBuildError as error:
                    failure.write_text(f"{native_cuda_build.find_nvcc()}\n{error}\n")
                    raise
                failure.unlink(missing_ok=True)
    except OSError as error:
        raise NativeBuildError(
            f"the cache {root} cannot be written ({error.strerror or error}); "
            "set FASTGAN_CACHE to another folder"
        ) from error
    return root / key


def _failure_file() -> Path:
    return native.cache_folder() / f"{_key()}.failed"


def _last_failure() -> str | None:
    return native_build.remembered_failure(_failure_file(), native_cuda_build.find_nvcc())


def _compile_into(root: Path, key: str) -> None:
    """Compile in a folder of this process's own, then rename it to `root / key`."""
    say("compiling the CUDA kernels, once (about a minute) ...")
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        native_cuda_build.compile_library(work)
        if (root / key).exists():  # a damaged one
            shutil.rmtree(root / key)
        work.rename(root / key)
        say(f"CUDA kernels compiled in {time.monotonic() - started:.0f} s")
    finally:
        with contextlib.suppress(OSError):
            for leftover in root.glob(f".{key}.*"):  # the lock is ours: whoever made others is gone
                shutil.rmtree(leftover, ignore_errors=True)
