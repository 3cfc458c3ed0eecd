"""Folders and zip archives of image files, with class folders as labels."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastgan.data.source import (
    ImageSource,
    digest_of,
    is_image_name,
    labels_of_class_folders,
    no_images,
    printable,
)
from fastgan.errors import DataError

# An image file of this size decodes to more pixels than the limit on decompression bombs.
_MAX_FILE_BYTES = 512 << 20


def folder_source(folder: Path) -> ImageSource:
    """The images under a folder, at any depth, in alphabetical order.

    Hidden files and folders, and files that are no images by their suffix, are passed over.
    Symbolic links are followed, each folder once. The fingerprint is taken from the folder's
    path and from every image's name, size, modification and status-change time.

    Raises:
        DataError: there is no image, or a folder cannot be read.
    """
    names: list[PurePosixPath] = []
    rows: list[list[str | int]] = [[str(folder.resolve())]]
    others: list[PurePosixPath] = []
    total = 0
    for name in _files_under(folder):
        if not is_image_name(name):
            others.append(name)
            continue
        try:
            status = os.stat(folder / name)
        except OSError:
            # A broken link: listed, so that it is reported as a bad image and not overlooked.
            rows.append([str(name), -1])
        else:
            if not stat.S_ISREG(status.st_mode):
                continue  # a pipe or socket would block whoever opens it
            rows.append([str(name), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
            total += status.st_size
        names.append(name)
    if not names:
        raise no_images(str(folder), others)
    labels, classes = labels_of_class_folders(names)

    def references() -> Iterator[tuple[str, Path]]:
        return ((str(name), folder / name) for name in names)

    return ImageSource(
        name=str(folder),
        fingerprint=digest_of(rows),
        count=len(names),
        references=references,
        read=_read_file,
        labels=labels,
        classes=classes,
        mean_bytes=total // len(names),
    )


def _read_file(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _MAX_FILE_BYTES:
        raise OSError(f"{size:,} bytes, over {_MAX_FILE_BYTES:,}")
    return path.read_bytes()


def _files_under(folder: Path) -> Iterator[PurePosixPath]:
    """Names, relative to `folder`, of all files that are not hidden, in alphabetical order."""

    def refuse(error: OSError) -> None:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()  # a link that leads back up, or a second link to one folder
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        for name in sorted(files):
            if not name.startswith("."):
                yield relative / name


def zip_source(path: Path) -> ImageSource:
    """The images in a zip archive, read in place: nothing is extracted to the disk.

    The fingerprint is taken from every image's name, size and CRC-32, so it does not change when
    the archive is copied or moved.

    Raises:
        DataError: it is no zip, holds no image, is encrypted, or names files outside itself.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not a complete zip archive: {error}") from error
    for entry in archive.infolist():
        if _leads_outside(entry.orig_filename):
            archive.close()
            raise DataError(
                f"{path} is refused: its entry {printable(entry.orig_filename)!r} leads outside "
                f"the archive; make the zip again with plain relative names"
            )
    # Some Windows programs write backslashes between folders.
    files = [
        (PurePosixPath(entry.filename.replace("\\", "/")), entry)
        for entry in archive.infolist()
        if not entry.is_dir()
    ]
    images = sorted(
        ((name, entry) for name, entry in files if is_image_name(name)), key=lambda pair: pair[0]
    )
    if not images:
        archive.close()
        raise no_images(str(path), (name for name, _ in files))
    names = [name for name, _ in images]
    entries = [entry for _, entry in images]
    if any(entry.flag_bits & 1 for entry in entries):
        archive.close()
        raise DataError(f"{path} is password-protected; make the zip again without a password")
    labels, classes = labels_of_class_folders(names)

    def references() -> Iterator[tuple[str, zipfile.ZipInfo]]:
        return ((entry.filename, entry) for entry in entries)

    def read(entry: zipfile.ZipInfo) -> bytes:
        if entry.file_size > _MAX_FILE_BYTES:
            raise OSError(f"{entry.file_size:,} bytes unpacked, over {_MAX_FILE_BYTES:,}")
        return archive.read(entry)

    return ImageSource(
        name=str(path),
        fingerprint=digest_of([e.filename, e.file_size, e.CRC] for e in entries),
        count=len(entries),
        references=references,
        read=read,
        labels=labels,
        classes=classes,
        mean_bytes=sum(entry.file_size for entry in entries) // len(entries),
    )


def _leads_outside(name: str) -> bool:
    """Whether an entry's name is absolute or climbs, in the writing of any system."""
    if ".." not in name and ":" not in name and not name.startswith(("/", "\\")):
        return False
    windows = PureWindowsPath(name)
    return bool(windows.anchor) or name.startswith("/") or ".." in windows.parts
