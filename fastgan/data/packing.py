"""Decoding a whole source, once, in parallel, into a packed file.

Threads, not processes: Pillow lets go of the interpreter while it decodes and resizes, threads
share the archive and cost nothing to start, and a script without an `if __name__ == "__main__"`
guard works. Where images are so small that the interpreter does most of the work (CIFAR-10 as
JPEG: 1 KB each), more threads only get into each other's way, and one is used.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fastgan.data.decoding import BadImageError, ColourImageError, SmallImageError, Target, decode
from fastgan.data.format import PackedWriter
from fastgan.data.source import ImageSource, printable
from fastgan.errors import DataError

# Images a task: enough to hide a task's cost, few enough for a smooth progress bar and for the
# memory of all the tasks in flight.
_CHUNK = 32
_CHUNK_BYTES = 8 << 20
_NAMED = 5  # bad images named in an error
_ONE_THREAD_BELOW_BYTES = 2048  # measured: 48 us with one thread, 57 with two at 1.5 KB a JPEG


@dataclass
class _Chunk:
    """Decoded images [k, H, W, C], which of the chunk they are, and what is wrong with the rest."""

    pixels: np.ndarray
    kept: np.ndarray
    bad: list[tuple[str, str]] = field(default_factory=list)
    small: list[tuple[str, str]] = field(default_factory=list)


def pack(
    source: ImageSource,
    target: Target,
    writer: PackedWriter,
    *,
    skip_bad: bool,
    workers: int | None,
    progress: bool | None,
) -> None:
    """Decode every image of `source` into `writer` and finish it.

    Args:
        source: what to read.
        target: what every image becomes.
        writer: an empty packed file of the target's shape.
        skip_bad: leave out images that cannot be used, and record how many.
        workers: threads; None chooses from the processors and the size of the images.
        progress: False shows nothing; otherwise a bar on standard error, where it is a terminal.

    Raises:
        ColourImageError: target.refuse_colour is set and an image is stored in colour.
        DataError: images are bad or too small and skip_bad is False, or none is left.
    """
    kept: list[np.ndarray] = []
    bad: list[tuple[str, str]] = []
    small: list[tuple[str, str]] = []
    bar = Progress(
        TextColumn("packing {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=progress is False or not sys.stderr.isatty(),
        transient=True,
    )
    with bar, warnings.catch_warnings():
        # The limit on pixels is enforced in decoding, and damaged EXIF does not spoil an image.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\b")
        task = bar.add_task(printable(source.name), total=source.count)
        for chunk in _decoded(source, target, workers or _default_workers(source)):
            bad += chunk.bad
            small += chunk.small
            kept.append(chunk.kept)
            if skip_bad or not (bad or small):
                writer.append(chunk.pixels)
            bar.advance(task, len(chunk.kept))
    skipped = len(bad) + len(small)
    if skipped and not skip_bad:
        raise _refusal(source, target, bad, small)
    chosen = np.concatenate(kept)
    if not chosen.any():
        reasons = [*bad, *((name, f"only {size}") for name, size in small)]
        raise DataError(
            f"no image of {source.name} is left: all {len(chosen)} were skipped ({_list(reasons)})"
        )
    labels = None if source.labels is None else source.labels[chosen]
    writer.finish(labels, source.name, source.classes, skipped)


def _default_workers(source: ImageSource) -> int:
    if 0 < source.mean_bytes < _ONE_THREAD_BELOW_BYTES:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _decoded(source: ImageSource, target: Target, workers: int) -> Iterator[_Chunk]:
    """The chunks of the source in order, decoded by `workers` threads a few chunks ahead."""
    references = source.references()
    image_bytes = target.height * target.width * target.channels
    chunk_size = max(1, min(_CHUNK, _CHUNK_BYTES // image_bytes))
    pending: deque[Future[_Chunk]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="fastgan-decode")
    try:
        while True:
            while len(pending) < 2 * workers + 2:
                chunk = list(islice(references, chunk_size))
                if not chunk:
                    break
                pending.append(executor.submit(_decode_chunk, source, target, chunk))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _decode_chunk(source: ImageSource, target: Target, references: list[tuple[str, Any]]) -> _Chunk:
    shape = (len(references), target.height, target.width, target.channels)
    chunk = _Chunk(np.empty(shape, np.uint8), np.zeros(len(references), bool))
    filled = 0
    for position, (name, reference) in enumerate(references):
        try:
            chunk.pixels[filled] = decode(source.read(reference), target)
        except SmallImageError as error:
            chunk.small.append((name, str(error)))
        except BadImageError as error:
            chunk.bad.append((name, str(error)))
        except (ColourImageError, MemoryError):
            raise
        except Exception as error:
            # Not readable: permissions, a broken link, a checksum or compression of the archive.
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            chunk.bad.append((name, reason))
        else:
            chunk.kept[position] = True
            filled += 1
    chunk.pixels = chunk.pixels[:filled]
    return chunk


def _refusal(
    source: ImageSource,
    target: Target,
    bad: list[tuple[str, str]],
    small: list[tuple[str, str]],
) -> DataError:
    complaints = []
    if bad:
        complaints.append(
            f"{len(bad)} of {source.count} images of {source.name} cannot be used ({_list(bad)}); "
            f"repair them, or leave them out with --skip-bad (skip_bad=True)"
        )
    if small:
        ways = "choose a smaller --image-size or enlarge them with --upscale (upscale=True)"
        if len(small) < source.count:
            ways += ", or leave them out with --skip-bad (skip_bad=True)"
        complaints.append(
            f"{len(small)} of {source.count} images of {source.name} are smaller than "
            f"{target.height}x{target.width} ({_list(small)}); {ways}"
        )
    return DataError("; and ".join(complaints))


def _list(images: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{printable(name)}: {printable(why)}" for name, why in images[:_NAMED])
    return named + (f" and {len(images) - _NAMED} more" if len(images) > _NAMED else "")
