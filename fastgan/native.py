"""Finds, builds or loads the compiled extension (csrc/): the native CPU kernels.

Three places, in order: the installed package (`pip install --no-build-isolation` compiles ahead of
time where it finds torch and a compiler), the cache (`$FASTGAN_CACHE/native`), and a build into the
cache. Importing this module touches none of them. The build happens on the first call that a native
kernel would serve, or when it is asked for (`build()`, `fastgan doctor --build`).

FASTGAN_NATIVE says what is wanted:

- `auto` (the default): native kernels where they can be had. Nothing ever fails for want of them:
  one line on stderr says what is missing, and torch's operators serve.
- `off`: never loaded, never built.
- `require`: their absence is an error (`NativeBuildError`).

FASTGAN_NATIVE_LEVEL forces an instruction-set level: amx_bf16, avx512_bf16, avx512, avx2, portable.

A library is built in a folder of its own under a lock and renamed when it is complete. The lock is
the operating system's (flock): it ends with the process that holds it, however that process ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fastgan import environment, native_build
from fastgan.errors import ConfigError, NativeBuildError
from fastgan.native_progress import progress_line, say

try:
    import fcntl
except ImportError:  # native kernels are built on Linux only
    fcntl = None  # type: ignore[assignment]

MODES = ("auto", "off", "require")
#: Seconds that a process waits for another one's build before it goes on without.
LOCK_PATIENCE = {"auto": 60.0, "require": native_build.BUILD_LIMIT}


@dataclass(frozen=True)
class Extension:
    """The loaded extension.

    Attributes:
        module: the pybind11 module; its kernels are in `torch.ops.fastgan_cpu`.
        folder: where the library lies.
        origin: "installed", "cache" or "built" (by this process).
    """

    module: ModuleType
    folder: Path
    origin: str


@dataclass(frozen=True)
class Level:
    """An instruction-set level that is compiled in.

    Attributes:
        name: as FASTGAN_NATIVE_LEVEL takes it.
        usable: True if this processor has it.
        vector_bits: of the vectors that the kernels work on.
        register_tiles: by dtype that is multiplied natively, the (rows, columns) of float32 sums
            that a convolution keeps in registers at a time.
    """

    name: str
    usable: bool
    vector_bits: int
    register_tiles: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Status:
    """What `fastgan doctor` says about the native kernels.

    Attributes:
        mode: FASTGAN_NATIVE.
        usable: True if the kernels are loaded.
        reason: why they are not, or None.
        origin, folder: of the loaded library, or None.
        level, levels: the instruction-set level in use and all usable ones, best first.
        compiled: all levels of the library, best first.
        features: processor features that the levels ask for.
        built_by: the compiler that built the library, or None.
        compiler: the C++ compiler that a build would use, or None.
        cache: the folder for libraries built on first use.
    """

    mode: str
    usable: bool
    reason: str | None
    origin: str | None
    folder: Path | None
    level: str | None
    levels: tuple[str, ...]
    compiled: tuple[Level, ...]
    features: dict[str, bool]
    built_by: str | None
    compiler: str | None
    cache: Path


_lock = threading.RLock()
_extension: Extension | None = None
_reason: str | None = None  # why there is no extension; final for this process
_tried_to_build = False
_when_loaded: list[Callable[[ModuleType], None]] = []


def mode() -> str:
    """Return FASTGAN_NATIVE.

    Raises:
        ConfigError: it is none of `MODES`.
    """
    return environment.choice("FASTGAN_NATIVE", MODES)


def cache_folder() -> Path:
    """Return the folder for libraries built on first use, `$FASTGAN_CACHE/native`."""
    return environment.cache_folder() / "native"


def installed_folder() -> Path:
    """Return where `pip install` puts the library."""
    return Path(__file__).resolve().parent / "_native"


def extension(*, build: bool = True) -> Extension | None:
    """Return the extension, loaded; None where there is none (see `reason`).

    Args:
        build: compile it now if it is not built yet and FASTGAN_NATIVE allows it.

    Raises:
        NativeBuildError: FASTGAN_NATIVE=require, and it cannot be had.
    """
    global _reason, _tried_to_build
    if _extension is not None or (_tried_to_build and mode() != "require"):
        return _extension
    with _lock:
        if _extension is not None:
            return _extension
        if mode() == "off":
            _reason = "FASTGAN_NATIVE=off"
            return None
        try:
            found = _find() or (_build_once() if build else None)
            if found is None:
                _reason = _last_failure() or "not built yet (`fastgan doctor --build` compiles it)"
                return None
            _loaded(found)
        except NativeBuildError as error:
            _reason = str(error)
            if mode() == "require":
                raise NativeBuildError(f"FASTGAN_NATIVE=require: {error}") from error
            say(f"native CPU kernels are off, torch's serve instead: {error}")
        _tried_to_build = True
        return _extension


def reason() -> str | None:
    """Return why the extension is not loaded as far as this process knows, or None if it is."""
    return None if _extension is not None else (_reason or "not asked for yet")


def ruled_out() -> str | None:
    """Return why the extension cannot be had in this process, or None; nothing is tried for it."""
    if _extension is not None:
        return None
    if mode() == "off":
        return "FASTGAN_NATIVE=off"
    return _reason if _tried_to_build else None


def build() -> Extension:
    """Load the extension, compiling it if need be and forgetting earlier failures.

    Raises:
        NativeBuildError: FASTGAN_NATIVE=off, or it cannot be compiled or loaded.
    """
    global _tried_to_build
    with _lock:
        if _extension is not None:
            return _extension
        if mode() == "off":
            raise NativeBuildError("FASTGAN_NATIVE=off: unset it to build the native kernels")
        found = _find() or _build_once(forget_failure=True)
        _loaded(found)
        _tried_to_build = True
        return found


def when_loaded(action: Callable[[ModuleType], None]) -> None:
    """Call `action` with the extension's module: now if it is loaded, else once it is."""
    with _lock:
        if _extension is None:
            _when_loaded.append(action)
            return
    action(_extension.module)


def status() -> Status:
    """Describe the state of the native kernels without building anything."""
    loaded = extension(build=False) if mode() != "off" else None
    module = loaded.module if loaded else None
    return Status(
        mode=mode(),
        usable=loaded is not None,
        reason=(ruled_out() or native_build.obstacle() or reason()) if loaded is None else None,
        origin=loaded.origin if loaded else None,
        folder=loaded.folder if loaded else None,
        level=module.level() if module else None,
        levels=tuple(module.levels()) if module else (),
        compiled=tuple(Level(**one) for one in module.compiled_levels()) if module else (),
        features=dict(module.features()) if module else {},
        built_by=module.build_info()["compiler"] if module else None,
        compiler=native_build.find_compiler(),
        cache=cache_folder(),
    )


@contextlib.contextmanager
def forced_level(name: str) -> Iterator[None]:
    """Run the kernels at one instruction-set level inside the block, in the whole process.

    Raises:
        ConfigError: this processor, or the build, does not have the level.
    """
    module = build().module
    before = module.level()
    _force(module, name, f"instruction-set level {name!r}")
    try:
        yield
    finally:
        module.force_level(before)


def _force(module: ModuleType, name: str, asked: str) -> None:
    """Force a level; `asked` is how the error names what was asked for."""
    if not module.force_level(name):
        raise ConfigError(f"{asked} cannot run here; usable: {', '.join(module.levels())}")


def _load(folder: Path, origin: str) -> Extension:
    """Load the library in `folder`, which `check_library` has found whole."""
    path = folder / native_build.LIBRARY
    spec = importlib.util.spec_from_file_location(native_build.MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise NativeBuildError(f"the library could not be loaded: {first}") from error
    level = os.environ.get("FASTGAN_NATIVE_LEVEL", "").strip().lower()
    if level:
        _force(module, level, f"FASTGAN_NATIVE_LEVEL={level!r}")
    return Extension(module, folder, origin)


def _loaded(found: Extension) -> None:
    """Take `found` as this process's extension; the lock is held."""
    global _extension, _reason
    _extension, _reason = found, None
    while _when_loaded:
        _when_loaded.pop()(found.module)


def _find() -> Extension | None:
    """Load the extension from the package or the cache, if one of them has the right one."""
    sources = native_build.source_folder()
    if sources is None:
        return None
    key = native_build.build_key(sources)
    for folder, origin in ((installed_folder(), "installed"), (cache_folder() / key, "cache")):
        if native_build.check_library(folder, key) is None:
            return _load(folder, origin)
    return None


def _build_once(*, forget_failure: bool = False) -> Extension:
    """Compile the extension into the cache, or wait for the process that is doing so."""
    obstacle = native_build.obstacle()
    if obstacle is not None:
        raise NativeBuildError(obstacle)
    sources = native_build.source_folder()
    assert sources is not None
    key, root = native_build.build_key(sources), cache_folder()
    failure = root / f"{key}.failed"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root / f"{key}.lock", "native CPU"):
            if native_build.check_library(root / key, key) is None:
                return _load(root / key, "cache")
            told = native_build.remembered_failure(failure, native_build.find_compiler())
            if told is not None and not forget_failure:
                raise NativeBuildError(told)
            try:
                _compile_into(root, key)
            except NativeBuildError as error:
                failure.write_text(f"{native_build.find_compiler()}\n{error}\n")
                raise
            failure.unlink(missing_ok=True)
    except OSError as error:
        raise NativeBuildError(
            f"the cache {root} cannot be written ({error.strerror or error}); "
            "set FASTGAN_CACHE to another folder"
        ) from error
    return _load(root / key, "built")


def _last_failure() -> str | None:
    sources = native_build.source_folder()
    if sources is None:
        return None
    failure = cache_folder() / f"{native_build.build_key(sources)}.failed"
    return native_build.remembered_failure(failure, native_build.find_compiler())


def _compile_into(root: Path, key: str) -> None:
    """Compile in a folder of this process's own, then rename it to `root / key`."""
    for abandoned in root.glob(f".{key}.*"):  # the lock is ours: whoever made these is gone
        shutil.rmtree(abandoned, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    started = time.monotonic()
    try:
        with progress_line() as progress:
            native_build.compile_library(folder, progress)
        say(f"native CPU kernels compiled in {time.monotonic() - started:.0f} s")
        if (root / key).exists():  # a damaged one
            (root / key).rename(Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root)) / "damaged")
        folder.rename(root / key)
    finally:
        for leftover in root.glob(f".{key}.*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def exclusive(path: Path, kernels: str) -> Iterator[None]:
    """Hold the lock file at `path` to compile `kernels`; it is free when the process ends."""
    patience = LOCK_PATIENCE[mode()]
    deadline = time.monotonic() + patience
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NativeBuildError(
                        f"another process has been building for more than {patience:.0f} s"
                    ) from None
                if not waiting:
                    say(f"waiting for another process that compiles the {kernels} kernels")
                    waiting = True
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
