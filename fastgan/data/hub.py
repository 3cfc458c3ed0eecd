"""Parquet files, and data sets of the Hugging Face hub, by the `hub` extra.

Parquet is read by pyarrow straight into packing, without the second copy on disk that opening it
as a data set would make. Both carry images as encoded files, in a column of
`{bytes, path}` records or of plain bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastgan.data.source import ImageSource, digest_of, file_identity
from fastgan.errors import DataError, MissingExtraError

_LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
_ROWS_AT_ONCE = 64


def parquet_source(paths: list[Path], name: str) -> ImageSource:
    """Images in one or more parquet files of one schema, in the order given.

    The image column is the one that the file's Hugging Face metadata call an Image, else the
    first with encoded bytes in it; the labels are the ClassLabel column, else integers called
    label. The fingerprint is taken from the files' paths, sizes and times of change.

    Args:
        paths: at least one parquet file.
        name: what to call the source.

    Raises:
        DataError: a file is no parquet, or has no column of images.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            f"parquet files such as {paths[0]} are read by pyarrow, which is not installed: "
            "pip install 'fastgan[hub]'"
        ) from error
    try:
        schema = pq.read_schema(paths[0])
        features = _hugging_face_features(schema)
        image_column = _image_column(schema, features)
        label_column = _label_column(schema, features)
        counts = [pq.read_metadata(path).num_rows for path in paths]
        labels = None
        if label_column is not None:
            tables = [pq.read_table(path, columns=[label_column]) for path in paths]
            labels = pa.concat_tables(tables)[label_column].to_numpy()
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(f"{name} cannot be read as parquet: {_first_line(error)}") from error
    if image_column is None:
        raise DataError(f"{name} has no column of images: its columns are {schema.names}")
    if sum(counts) == 0:
        raise DataError(f"{name} holds no rows")

    def references() -> Iterator[tuple[str, bytes | None]]:
        row = 0
        try:
            for path in paths:
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image_column]):
                        for value in batch.column(0).to_pylist():
                            yield f"row {row}", _encoded(value)
                            row += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name} is damaged at row {row}: {_first_line(error)}") from error

    return ImageSource(
        name=name,
        fingerprint=digest_of(file_identity(path) for path in paths),
        count=sum(counts),
        references=references,
        read=_read_bytes,
        **_labelled(labels, features.get(label_column or "", {}).get("names"), name),
        mean_bytes=sum(path.stat().st_size for path in paths) // sum(counts),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hugging_face_features(schema: Any) -> dict[str, Any]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    try:
        features = json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _image_column(schema: Any, features: dict[str, Any]) -> str | None:
    import pyarrow.types as types

    declared = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    records = [
        field.name
        for field in schema
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    encoded = [
        field.name
        for field in schema
        if types.is_binary(field.type) or types.is_large_binary(field.type)
    ]
    return next(iter([*declared, *records, *encoded]), None)


def _label_column(schema: Any, features: dict[str, Any]) -> str | None:
    import pyarrow.types as types

    declared = [n for n in schema.names if features.get(n, {}).get("_type") == "ClassLabel"]
    integers = [
        name
        for name in _LABEL_COLUMNS
        if name in schema.names and types.is_integer(schema.field(name).type)
    ]
    return next(iter([*declared, *integers]), None)


def _encoded(value: Any) -> bytes | None:
    """The bytes of a cell; a record's path is not followed, for it may name any file here."""
    return value.get("bytes") if isinstance(value, dict) else value


def _read_bytes(value: bytes | None) -> bytes:
    if value is None:
        raise OSError("no image in this row")
    return value


def _labelled(labels: np.ndarray | None, names: list[str] | None, source: str) -> dict[str, Any]:
    """Labels and classes as a source's arguments; classes that have no names are numbered."""
    if labels is None:
        return {}
    if labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
        # Missing labels come as floating-point NaN, hidden ones (test splits) as -1.
        return {}
    if names is None:
        values, labels = np.unique(labels, return_inverse=True)
        names = [str(value) for value in values]
    if len(labels) and labels.max() >= len(names):
        raise DataError(f"{source} has the label {labels.max()}, but only {len(names)} classes")
    return {"labels": labels.astype(np.int64), "classes": tuple(names)}


def hub_source(name: str) -> ImageSource:
    """The `train` split of a data set of the Hugging Face hub, by its name: `owner/name`.

    The fingerprint is the one that `datasets` keeps of a data set's content and history.

    Raises:
        DataError: there is no such data set, or it has no split `train` or no images.
        MissingExtraError: datasets is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{name!r} is no file or folder here; to open it as a Hugging Face data set: "
            "pip install 'fastgan[hub]'"
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, split="train")
    except Exception as error:
        # The hub's client and every data set's loader have errors of their own.
        raise DataError(
            f"{name!r} is neither a file or folder here nor a Hugging Face data set that can be "
            f"opened: {_first_line(error)}"
        ) from error
    columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise DataError(f"{name!r} has no column of images: its columns are {list(rows.features)}")
    if len(rows) == 0:
        raise DataError(f"{name!r} holds no rows")
    column = columns[0]
    images = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    label_column = next(
        (key for key, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)), None
    )
    labels = None if label_column is None else np.asarray(rows[label_column])
    names = None if label_column is None else rows.features[label_column].names

    def references() -> Iterator[tuple[str, Any]]:
        return ((f"row {index}", row[column]) for index, row in enumerate(images))

    def read(value: dict[str, Any] | None) -> bytes:
        value = value or {}
        if value.get("bytes") is None and value.get("path"):
            # Here the path is the loader's own: a file that it downloaded.
            return Path(value["path"]).read_bytes()
        return _read_bytes(value.get("bytes"))

    return ImageSource(
        name=name,
        fingerprint=digest_of([[name, len(rows), rows._fingerprint]]),
        count=len(rows),
        references=references,
        read=read,
        **_labelled(labels, names, name),
        mean_bytes=(rows.dataset_size or 0) // len(rows),
    )
