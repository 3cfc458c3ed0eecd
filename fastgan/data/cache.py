"""Where packed files live, and how one appears there: complete or not at all, built once.

A file is written under a second name, `<name>.partial`, and renamed when it is complete. The
builder holds a lock on the partial file while it writes; the operating system drops the lock when
the process ends, however it ends, so a killed build can neither block the next one nor be taken
for a finished file. Who comes second waits, and then uses what the first has built.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import TypeVar

from fastgan.environment import cache_folder

try:
    import fcntl
except ImportError:  # Windows has no flock; builders there do not wait for each other
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

_PARTIAL = ".partial"
_ABANDONED_SECONDS = 7 * 24 * 3600  # where there are no locks to tell the living from the dead


def default_cache_dir() -> Path:
    """The folder for packed images, `$FASTGAN_CACHE/images`."""
    return cache_folder() / "images"


def build_once(
    path: Path,
    find: Callable[[], T | None],
    build: Callable[[FileIO], None],
    waiting: Callable[[], None],
) -> T:
    """Find the file, or build it atomically while no other process does.

    Args:
        path: the file to be, in a folder that exists.
        find: opens the file at `path`; None where it is missing or not usable.
        build: writes the whole content into an empty, unbuffered file.
        waiting: called once if another process is building the same file.

    Returns:
        What `find` returns.

    Raises:
        OSError: the folder or the disk refuses.
        Exception: whatever `build` raises; nothing is left behind then.
    """
    found = find()
    if found is not None:
        return found
    _remove_abandoned(path.parent)
    with _open_partial(path, waiting) as (file, partial):
        try:
            found = find()  # another process may have built it meanwhile
            if found is None:
                file.truncate(0)
                build(file)
                os.replace(partial, path)
                _sync_folder(path.parent)
        finally:
            # While the lock is held, and only the file that was locked: once it is renamed, a
            # partial file of this name is another builder's.
            if _is_still(partial, file):
                partial.unlink()
    found = find()
    if found is None:
        raise OSError(f"{path} was removed or damaged as soon as it was written")
    return found


@contextlib.contextmanager
def _open_partial(path: Path, waiting: Callable[[], None]) -> Iterator[tuple[FileIO, Path]]:
    """The partial file, open and locked; a private one where the file system has no locks."""
    partial = path.with_name(path.name + _PARTIAL)
    announced = False
    while True:
        file = FileIO(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        with file:
            locked = _lock(file)
            if locked is None:
                partial.unlink(missing_ok=True)
                break
            if not locked:
                if not announced:
                    waiting()
                    announced = True
                time.sleep(0.1)
                continue
            if _is_still(partial, file):
                yield file, partial
                return
            # Between opening and locking, its builder renamed or removed it: look again.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_PARTIAL}")
    with FileIO(partial, "x+b") as file:
        yield file, partial


def _lock(file: FileIO) -> bool | None:
    """True: locked. False: another process holds the lock. None: there are no locks here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_abandoned(folder: Path) -> None:
    """Delete the partial files of builders that were killed."""
    for partial in folder.glob("*" + _PARTIAL):
        with contextlib.suppress(OSError), FileIO(os.open(partial, os.O_RDWR), "r+b") as file:
            locked = _lock(file)
            if locked is None:
                locked = time.time() - os.fstat(file.fileno()).st_mtime > _ABANDONED_SECONDS
            if locked and _is_still(partial, file):
                partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synced at all."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
