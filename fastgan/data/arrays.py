"""Images that are arrays already: `.npy` and `.npz` files, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastgan.data.source import ImageSource, digest_of, file_identity
from fastgan.errors import DataError, MissingExtraError

_CHANNELS = (1, 3, 4)
_IMAGE_KEYS = ("images", "x", "x_train", "data", "arr_0")
_LABEL_KEYS = ("labels", "y", "y_train", "label", "arr_1")


def npy_source(path: Path) -> ImageSource:
    """One array of images, mapped: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], C in 1, 3, 4.

    The fingerprint is taken from the file's path, size and times of change.

    Raises:
        DataError: it is no array of that kind.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is not a complete .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is not a .npy file; if it is an .npz, give it that suffix")
    return _array_source(path, array, None, digest_of([file_identity(path)]))


def npz_source(path: Path) -> ImageSource:
    """Images and, where there are any, labels from an `.npz` archive.

    The images are the array called images, x, x_train, data or arr_0, or the only one; the
    labels (integers [N]) the one called labels, y, y_train, label or arr_1. The fingerprint is
    taken from every array's name, size and CRC-32.

    Raises:
        DataError: it is no such archive, or the arrays do not fit.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} is not an .npz archive; if it is a .npy, give it that suffix")
        with loaded as arrays:
            keys = list(arrays.files)
            image_key = next((key for key in _IMAGE_KEYS if key in keys), None)
            if image_key is None and len(keys) == 1:
                image_key = keys[0]
            if image_key is None:
                raise DataError(
                    f"{path} has no array of images: it holds {', '.join(keys) or 'nothing'}, "
                    f"and images are called {' or '.join(_IMAGE_KEYS)}"
                )
            label_key = next((k for k in _LABEL_KEYS if k in keys and k != image_key), None)
            images = arrays[image_key]
            labels = None if label_key is None else arrays[label_key]
        with zipfile.ZipFile(path) as archive:
            rows = [[entry.filename, entry.file_size, entry.CRC] for entry in archive.infolist()]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a complete .npz of plain arrays: {error}") from error
    return _array_source(path, images, labels, digest_of(rows))


def _array_source(
    path: Path, array: np.ndarray, labels: np.ndarray | None, fingerprint: str
) -> ImageSource:
    images = _channels_last(path, array)
    if labels is not None:
        labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise DataError(
                f"the labels in {path} are {labels.dtype} of shape {labels.shape}, but must be "
                f"integers of shape ({len(images)},)"
            )
        classes, labels = np.unique(labels, return_inverse=True)
        labels = labels.astype(np.int64)

    def references() -> Iterator[tuple[str, int]]:
        return ((f"image {index}", index) for index in range(len(images)))

    return ImageSource(
        name=str(path),
        fingerprint=fingerprint,
        count=len(images),
        references=references,
        read=lambda index: np.ascontiguousarray(images[index]),
        labels=labels,
        classes=() if labels is None else tuple(str(value) for value in classes),
        mean_bytes=int(images[0].nbytes),
    )


def _channels_last(path: Path, array: np.ndarray) -> np.ndarray:
    """The array as [N, H, W, C], without a copy."""
    if array.dtype != np.uint8:
        hint = "; scale it to 0..255 and convert it" if array.dtype.kind in "fiub" else ""
        raise DataError(f"{path} holds {array.dtype}, but images must be uint8{hint}")
    if array.ndim == 3:
        images = array[..., None]
    elif array.ndim == 4 and array.shape[-1] in _CHANNELS:
        images = array
    elif array.ndim == 4 and array.shape[1] in _CHANNELS:
        images = array.transpose(0, 2, 3, 1)
    else:
        raise DataError(
            f"{path} has the shape {array.shape}, but images must be (N, H, W), (N, H, W, C) or "
            f"(N, C, H, W) with 1, 3 or 4 channels"
        )
    if 0 in images.shape:
        raise DataError(f"{path} holds no pixels: its shape is {array.shape}")
    return images


def digits_source() -> ImageSource:
    """scikit-learn's bundled handwritten digits: 1,797 grey images of 8x8, with labels.

    They need no download, and are enlarged smoothly to any size. Source: E. Alpaydin and
    C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the data set 'digits' comes with scikit-learn, which is not installed: "
            "pip install 'fastgan[demo]'"
        ) from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]

    def references() -> Iterator[tuple[str, int]]:
        return ((f"digit {index}", index) for index in range(len(images)))

    return ImageSource(
        name="digits",
        fingerprint=hashlib.sha256(images.tobytes()).hexdigest(),
        count=len(images),
        references=references,
        read=lambda index: images[index],
        labels=digits.target.astype(np.int64),
        classes=tuple(str(name) for name in digits.target_names),
        mean_bytes=64,
        upscale=True,
    )
