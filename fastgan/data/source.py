"""What every source of images is, once found: a frozen record that packing reads through.

A source lists its images without decoding any, hands them out in order as cheap references, and
turns a reference into bytes or pixels in whichever thread asks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastgan.data.decoding import SUFFIXES
from fastgan.errors import DataError


@dataclass(frozen=True)
class ImageSource:
    """A listed source.

    Attributes:
        name: where the images come from, for people.
        fingerprint: hex digest that changes when the content does; see the function that makes
            the source for what it is taken from.
        count: number of images, at least 1.
        references: a fresh iterator over (name of the image, reference), in the source's order.
        read: reference -> an encoded image (bytes) or pixels (uint8 [H, W, 1, 3 or 4]). Called
            from several threads at once; OSError and the like mean that this image is bad.
        labels: int64 [count], or None.
        classes: the names of the labels.
        mean_bytes: about how large an encoded image is.
        upscale: smaller images may be enlarged without asking.
    """

    name: str
    fingerprint: str
    count: int
    references: Callable[[], Iterator[tuple[str, Any]]]
    read: Callable[[Any], bytes | np.ndarray]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    mean_bytes: int = 0
    upscale: bool = False


def digest_of(rows: Iterable[Any]) -> str:
    """SHA-256 (hex) of rows of strings and numbers."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def file_identity(path: Path) -> list[Any]:
    """What stands for a file's content: absolute path, size, and times of change.

    The status-change time cannot be set by a program, so a file that was replaced by one of the
    same size and modification time is still noticed.
    """
    status = os.stat(path)
    return [str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_image_name(name: PurePosixPath) -> bool:
    """Whether a file counts as an image: by its suffix, and nothing on its way is hidden."""
    if name.suffix.lower() not in SUFFIXES:
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


def labels_of_class_folders(
    names: list[PurePosixPath],
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from the folder each image lies in, as in `<class>/<anything>/<image>`.

    Folders that all images share are passed over. There are labels where every image then lies
    in a folder and there are at least two; with images beside the folders there are none.

    Returns:
        (labels int64 [N] or None, class names in alphabetical order).
    """
    shared = 0
    for level in zip(*(name.parts[:-1] for name in names), strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    folders = [name.parts[shared] if len(name.parts) > shared + 1 else None for name in names]
    classes = sorted({folder for folder in folders if folder is not None})
    if None in folders or len(classes) < 2:
        return None, ()
    number = {name: index for index, name in enumerate(classes)}
    labels = np.fromiter((number[str(folder)] for folder in folders), np.int64, len(folders))
    return labels, tuple(classes)


def no_images(where: str, names: Iterable[PurePosixPath]) -> DataError:
    """The error for a folder or archive without images, saying what was there instead."""
    suffixes = Counter(name.suffix.lower() or "no suffix" for name in names)
    found = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(3))
    return DataError(
        f"no images in {where} ({'it holds ' + found if found else 'it is empty'}); "
        f"images are files that end in {', '.join(sorted(SUFFIXES))}"
    )


def printable(name: str) -> str:
    """A file's name with whatever cannot be printed escaped, so that it stays on one line."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )
