"""The packed file: one header page, the pixels, the labels, and a record of how it was made.

| bytes | what |
|---|---|
| 0 .. 4095 | header: magic, version, count, height, width, channels, length of labels and record, and the SHA-256 of all that together with the labels and the record |
| 4096 .. | pixels, uint8 [count, height, width, channels] |
| then | labels, little-endian int64 [count], or nothing |
| then | the record, JSON: name, classes, skipped, digest |

The header is written last: a file whose writer was stopped has no magic, a truncated one has the
wrong length, and one of another version says so. Each is rebuilt, never trusted. The pixels are
not re-read to open a file (they may be 100 GB); their SHA-256 is in `digest`.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from io import FileIO
from typing import Any

import numpy as np

VERSION = 1
PIXELS_OFFSET = 4096  # one page, as memory maps want it

_MAGIC = b"fastgan packed\x00\x1a"
_FIELDS = struct.Struct("<16sIQIIIQQ")
_CHECKSUM_SIZE = hashlib.sha256().digest_size


class FormatError(Exception):
    """The file is not a complete packed file of this version."""


@dataclass(frozen=True)
class Header:
    """What a packed file says about itself; labels int64 [count] or None."""

    count: int
    height: int
    width: int
    channels: int
    labels: np.ndarray | None
    name: str
    classes: tuple[str, ...]
    skipped: int
    digest: str


def read_header(file: FileIO) -> Header:
    """Read and verify everything but the pixels.

    Raises:
        FormatError: the file is foreign, truncated, unfinished or of another version.
    """
    start = _read_at(file, 0, _FIELDS.size + _CHECKSUM_SIZE)
    if len(start) < _FIELDS.size + _CHECKSUM_SIZE:
        raise FormatError("shorter than a header")
    fields, checksum = start[: _FIELDS.size], start[_FIELDS.size :]
    magic, version, count, height, width, channels, labels_size, record_size = _FIELDS.unpack(
        fields
    )
    if magic != _MAGIC:
        raise FormatError("not a packed file, or one that was never finished")
    if version != VERSION:
        raise FormatError(f"version {version}, not {VERSION}")
    end_of_pixels = PIXELS_OFFSET + count * height * width * channels
    expected = end_of_pixels + labels_size + record_size
    if os.fstat(file.fileno()).st_size != expected:
        raise FormatError(f"not {expected} bytes long")
    tail = _read_at(file, end_of_pixels, labels_size + record_size)
    if hashlib.sha256(fields + tail).digest() != checksum:
        raise FormatError("its checksum does not match")
    record: dict[str, Any] = json.loads(tail[labels_size:])
    labels = np.frombuffer(tail[:labels_size], dtype="<i8").astype(np.int64)
    return Header(
        count=count,
        height=height,
        width=width,
        channels=channels,
        labels=labels if labels_size else None,
        name=record["name"],
        classes=tuple(record["classes"]),
        skipped=record["skipped"],
        digest=record["digest"],
    )


def _read_at(file: FileIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    pieces = []
    while size > 0:
        piece = file.read(size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class PackedWriter:
    """Writes a packed file from front to back; `finish` makes it valid.

    Plain writes, not a writable map: a full disk is then an OSError here and not a bus error at
    some later store.

    Args:
        file: an unbuffered file open for writing, empty.
        height: rows of an image.
        width: columns of an image.
        channels: 1, 3 or 4.
    """

    def __init__(self, file: FileIO, height: int, width: int, channels: int) -> None:
        self._file = file
        self._shape = (height, width, channels)
        self._count = 0
        self._digest = hashlib.sha256()
        file.seek(0)
        self._write(bytes(PIXELS_OFFSET))

    def append(self, pixels: np.ndarray) -> None:
        """Add images: uint8 [any number, height, width, channels], C-contiguous."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._shape:
            raise ValueError(
                f"pixels are {pixels.dtype} {pixels.shape}, not uint8 [n, {self._shape}]"
            )
        block = np.ascontiguousarray(pixels).reshape(-1).data
        self._digest.update(block)
        self._write(block)
        self._count += len(pixels)

    def finish(
        self, labels: np.ndarray | None, name: str, classes: tuple[str, ...], skipped: int
    ) -> None:
        """Write labels (int64, one an image), record and header, and force them to the disk."""
        if labels is not None and len(labels) != self._count:
            raise ValueError(f"{len(labels)} labels for {self._count} images")
        label_bytes = b"" if labels is None else labels.astype("<i8").tobytes()
        self._digest.update(json.dumps([self._count, *self._shape, list(classes)]).encode())
        self._digest.update(label_bytes)
        record = {
            "name": name,
            "classes": list(classes),
            "skipped": skipped,
            "digest": self._digest.hexdigest(),
        }
        record_bytes = json.dumps(record).encode()
        tail = label_bytes + record_bytes
        self._write(tail)
        fields = _FIELDS.pack(
            _MAGIC, VERSION, self._count, *self._shape, len(label_bytes), len(record_bytes)
        )
        # The header must not reach the disk before what it vouches for.
        os.fsync(self._file.fileno())
        self._file.seek(0)
        self._write(fields + hashlib.sha256(fields + tail).digest())
        os.fsync(self._file.fileno())

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]
