"""Finds, builds or loads the CUDA library (csrc/cuda): the CUDA C++ kernels.

The same places and the same rules as in `fastgan.native` (FASTGAN_NATIVE, a cache keyed by what the
library was built for, a lock that ends with its process), but a library of its own, which is
touched only where PyTorch sees a CUDA device. Importing this module touches nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgan import native, native_build, native_cuda_build
from fastgan.errors import NativeBuildError


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


def usable() -> str | None:
    """Return why the CUDA kernels cannot be called, or None if they can.

    The first call loads them, and may compile them, which takes about a minute.

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
                    _load(_find() or _build_once())
                except NativeBuildError as error:
                    if native.mode() == "require":
                        raise NativeBuildError(f"FASTGAN_NATIVE=require: {error}") from error
                    _reason = str(error)
            _tried = True
        return _reason


def status() -> Status:
    """Describe the state of the CUDA kernels without building anything."""
    reason = None
    if _folder is None:
        reason = _reason or obstacle()
        if reason is None and _find() is None:
            reason = native_cuda_build.compiler_obstacle()
        reason = reason or "not asked for yet (the first call loads or compiles them)"
    nvcc = native_cuda_build.find_nvcc()
    return Status(
        usable=_folder is not None,
        reason=reason,
        folder=_folder,
        nvcc=nvcc,
        nvcc_version=None if nvcc is None else native_cuda_build.nvcc_version(nvcc),
        architectures=native_cuda_build.ARCHITECTURES,
    )


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


def _build_once() -> Path:
    """Compile the library into the cache, or wait for the process that is doing so."""
    reason = native_cuda_build.compiler_obstacle()
    if reason is not None:
        raise NativeBuildError(reason)
    root, key = native.cache_folder(), _key()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with native.exclusive(root / f"{key}.lock"):
            if not _is_whole(root / key):
                _compile_into(root, key)
    except OSError as error:
        raise NativeBuildError(
            f"the cache {root} cannot be written ({error.strerror or error}); "
            "set FASTGAN_CACHE to a folder that can"
        ) from error
    return root / key


def _compile_into(root: Path, key: str) -> None:
    """Compile in a folder of this process's own, then rename it to `root / key`."""
    native.say("compiling the CUDA kernels, once (about a minute) ...")
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        native_cuda_build.compile_library(work)
        if (root / key).exists():  # a damaged one
            shutil.rmtree(root / key)
        work.rename(root / key)
        native.say(f"CUDA kernels compiled in {time.monotonic() - started:.0f} s")
    finally:
        with contextlib.suppress(OSError):
            for leftover in root.glob(f".{key}.*"):  # the lock is ours: whoever made others is gone
                shutil.rmtree(leftover, ignore_errors=True)
