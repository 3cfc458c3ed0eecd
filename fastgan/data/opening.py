"""`open_images`: from whatever a user calls a data set to mapped pixels."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from io import FileIO
from pathlib import Path

from fastgan.data.arrays import digits_source, npy_source, npz_source
from fastgan.data.cache import build_once, default_cache_dir
from fastgan.data.decoding import ColourImageError, Target
from fastgan.data.folders import folder_source, zip_source
from fastgan.data.format import PIXELS_OFFSET, VERSION, FormatError, PackedWriter
from fastgan.data.hub import hub_source, parquet_source
from fastgan.data.packed import PackedImages
from fastgan.data.packing import pack
from fastgan.data.source import ImageSource, digest_of, printable
from fastgan.errors import ConfigError, DataError

CHANNELS = (1, 3, 4)
MAX_SIDE = 16384

_FILE_SOURCES = {
    ".zip": zip_source,
    ".npy": npy_source,
    ".npz": npz_source,
    ".parquet": lambda path: parquet_source([path], str(path)),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def open_images(
    source: str | Path,
    image_size: int | tuple[int, int] = 64,
    channels: int | None = None,
    *,
    cache_dir: Path | None = None,
    skip_bad: bool = False,
    upscale: bool = False,
    workers: int | None = None,
    progress: bool | None = None,
) -> PackedImages:
    """Open a data set: decoded, cropped and resized once, then mapped from a cache.

    The first call packs; later ones with the same content and settings map the packed file at
    once. Cached files are keyed by the source's fingerprint (see `fastgan.data.source`), the
    image size, the channels and whether smaller images are enlarged. Delete the cache folder
    whenever you like.

    Args:
        source: a folder or `.zip` of images (class folders become labels), a `.npy` or `.npz` of
            uint8, the word `digits`, a `.parquet` file or a folder of them, or the name
            `owner/name` of a Hugging Face data set. A string that names a file or folder is
            that; a folder called digits is opened as `./digits`.
        image_size: height and width in pixels, or one number for both. Images are centre-cropped
            to this shape and resized; see `fastgan.data.decoding`.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); None for 1 if every image is stored in grey, and
            3 otherwise.
        cache_dir: folder of packed files; None for `$FASTGAN_CACHE/images`, or the platform's
            cache folder.
        skip_bad: leave out images that cannot be read or are too small, and count them in
            `PackedImages.skipped`.
        upscale: enlarge images that are smaller than `image_size`.
        workers: threads that decode; None chooses.
        progress: False shows no bar. A bar appears only on a terminal.

    Returns:
        The images, mapped.

    Raises:
        ConfigError: an argument has a value that is not allowed.
        DataError: the source is missing, holds no images or bad ones, or cannot be packed.
        MissingExtraError: the source needs a package that is not installed.
    """
    height, width = _checked_size(image_size)
    if channels is not None and channels not in CHANNELS:
        raise ConfigError(f"channels is {channels!r}, but must be 1, 3, 4 or None")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}, but must be at least 1")
    found = _find(source)
    upscale = upscale or found.upscale
    key = digest_of([[VERSION, found.fingerprint, height, width, channels, upscale]])
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    path = folder / f"{_stem(found.name)}-{height}x{width}x{channels or 'own'}-{key[:20]}.packed"

    def find() -> PackedImages | None:
        try:
            images = PackedImages(path)
        except (FileNotFoundError, FormatError):
            return None
        # Packed with images left out: without skip_bad, packing has to say which.
        return images if skip_bad or images.skipped == 0 else None

    def build(file: FileIO) -> None:
        for attempt in (channels,) if channels else (1, 3):
            own_grey = channels is None and attempt == 1
            target = Target(height, width, attempt, upscale, refuse_colour=own_grey)
            file.truncate(0)
            _require_space(folder, PIXELS_OFFSET + found.count * height * width * attempt)
            writer = PackedWriter(file, height, width, attempt)
            try:
                pack(found, target, writer, skip_bad=skip_bad, workers=workers, progress=progress)
            except ColourImageError:
                continue
            return

    def waiting() -> None:
        if progress is not False and sys.stderr.isatty():
            print(f"another process is packing {found.name}; waiting for it", file=sys.stderr)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return build_once(path, find, build, waiting)
    except OSError as error:
        raise DataError(
            f"packed images cannot be kept in the cache folder {folder}: "
            f"{error.strerror or error}; free some space or choose another one with cache_dir or "
            f"the environment variable FASTGAN_CACHE"
        ) from error


def _checked_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or not all(
        isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE
        for side in sides
    ):
        raise ConfigError(
            f"image_size is {image_size!r}, but must be one or two (height, width) whole numbers "
            f"from 1 to {MAX_SIDE}"
        )
    return sides[0], sides[1]


def _find(source: str | Path) -> ImageSource:
    """The listed source that `source` names."""
    if source == "digits":
        return digits_source()
    shown = printable(str(source))
    try:
        path = Path(source).expanduser()
        if source != "" and path.is_dir():
            return _folder_or_parquet(path)
        if source != "" and path.exists():
            opener = _FILE_SOURCES.get(path.suffix.lower())
            if opener is None or not path.is_file():
                raise DataError(
                    f"{shown} is not a source of images: a file must end in "
                    f"{', '.join(_FILE_SOURCES)}; single images belong in a folder"
                )
            return opener(path)
        if isinstance(source, str) and _HUB_NAME.fullmatch(source):
            return hub_source(source)
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: "~name" of a user that this machine does not have.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{shown} cannot be read: {reason}") from error
    raise DataError(
        f"there is no file or folder {shown!r}; a source is a folder or zip of images, a .npy, "
        f".npz or .parquet file, the word 'digits', or a Hugging Face name such as 'owner/name'"
    )


def _folder_or_parquet(folder: Path) -> ImageSource:
    parquet = sorted(folder.glob("*.parquet"))
    if not parquet:
        return folder_source(folder)
    return parquet_source(parquet, str(folder))


def _stem(name: str) -> str:
    """The part of a cache file's name that helps people; the key makes it unique."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(name).stem).strip("-")[:40] or "images"


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needed:,} bytes needed, {free:,} free)"
        )
