"""Bad inputs: each gives one sentence that says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import builtins
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastgan.data import open_images
from fastgan.errors import ConfigError, DataError, FastganError, MissingExtraError


def jpeg(height: int = 32, width: int = 32) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20000, 10000)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(path: Path, **names: bytes) -> Path:
    """A folder with good.jpg and the files named (`a__png` is a.png)."""
    path.mkdir()
    (path / "good.jpg").write_bytes(jpeg())
    for name, data in names.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def only_text(path: Path) -> Path:
    path.mkdir()
    (path / "a.txt").write_text("text")
    (path / "b.pdf").write_text("text")
    return path


def only_hidden(path: Path) -> Path:
    path.mkdir()
    (path / ".a.jpg").write_bytes(jpeg())
    return path


def broken_link(path: Path) -> Path:
    (folder(path) / "lost.jpg").symlink_to(path / "nowhere.jpg")
    return path


def endless_link(path: Path) -> Path:
    (folder(path) / "loop.jpg").symlink_to(path / "loop.jpg")
    return path


def archive(*names: str, data: bytes | None = None) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, jpeg() if data is None else data)
        return path

    return write


def changed(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def damaged_entry(path: Path) -> Path:
    path = archive("a.jpg", "b.jpg")(path)
    data = bytearray(path.read_bytes())
    data[300] ^= 255  # in the pixels of the first, which is stored as it is
    path.write_bytes(data)
    return path


def encrypted(path: Path) -> Path:
    path = archive("a.jpg")(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


def cut_zip(path: Path) -> Path:
    path = archive("a.jpg", "b.jpg")(path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def written(suffix: str, data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path = path.with_suffix(suffix)
        path.write_bytes(data)
        return path

    return write


def npy(array: Any, **options: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        np.save(path.with_suffix(".npy"), array, **options)
        return path.with_suffix(".npy")

    return write


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        np.savez(path.with_suffix(".npz"), **arrays)
        return path.with_suffix(".npz")

    return write


def cut_npy(path: Path) -> Path:
    path = npy(U8)(path)
    path.write_bytes(path.read_bytes()[:-10])
    return path


def damaged_npz(path: Path) -> Path:
    path = npz(images=U8)(path)
    data = bytearray(path.read_bytes())
    data[1000] ^= 255
    path.write_bytes(data)
    return path


def parquet(**columns: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            pa.table(columns), path.with_suffix(".parquet")
        )
        return path.with_suffix(".parquet")

    return write


def damaged_parquet(path: Path) -> Path:
    path = parquet(image=[jpeg()] * 3)(path)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    return path


U8 = np.zeros((4, 32, 32, 3), np.uint8)
NAN = np.full((4, 32, 32, 3), np.nan, np.float32)

# name -> (what makes the source, what the sentence must say)
BAD_SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing path": (lambda p: p, r"there is no file or folder"),
    "missing zip": (lambda p: f"{p}.zip", r"there is no file or folder"),
    "no name": (lambda p: "", r"there is no file or folder ''"),
    "name with a zero byte": (lambda p: str(p) + "\0", r"cannot be read|there is no file"),
    "home of nobody": (lambda p: "~nobody-here/images", r"cannot be read"),
    "empty folder": (empty_folder, r"no images in .* \(it is empty\)"),
    "folder of other files": (only_text, r"no images in .*it holds 1 \.txt, 1 \.pdf"),
    "folder of hidden images": (only_hidden, r"no images in"),
    "truncated JPEG": (
        lambda p: folder(p, a__jpg=jpeg()[:700]),
        r"1 of 2 images .*\(a\.jpg: truncated\).*--skip-bad",
    ),
    "not an image": (
        lambda p: folder(p, a__png=b"text", b__jpg=b""),
        r"2 of 3 .*\(a\.png: not an image, b\.jpg: an empty file\)",
    ),
    "many bad images": (
        lambda p: folder(p, **{f"x{k}__png": b"text" for k in range(40)}),
        r"40 of 41 .*x12\.png: not an image and 35 more",
    ),
    "decompression bomb": (lambda p: folder(p, a__png=bomb()), r"a\.png: a decompression bomb"),
    "broken link": (broken_link, r"lost\.jpg: No such file"),
    "link to itself": (endless_link, r"loop\.jpg: Too many levels"),
    "image smaller than the target": (
        lambda p: folder(p, a__jpg=jpeg(12, 40)),
        r"1 of 2 images .* smaller than 16x16 \(a\.jpg: 12x40\).*--image-size.*--upscale",
    ),
    "bad and small images": (
        lambda p: folder(p, a__jpg=jpeg(8, 8), b__jpg=b"text"),
        r"1 of 3 .*b\.jpg: not an image.*and 1 of 3 .*a\.jpg: 8x8",
    ),
    "zip that climbs": (archive("a.jpg", "../b.jpg"), r"refused: its entry '\.\./b\.jpg'"),
    "zip that climbs, hidden": (archive("a/../../b.txt", "a.jpg"), r"refused"),
    "zip with absolute names": (archive("/etc/a.jpg"), r"refused: its entry '/etc/a\.jpg'"),
    "zip with a drive": (archive("C:/a.jpg", "b.jpg"), r"refused"),
    "zip that climbs by backslashes": (
        lambda p: changed(archive("a.jpg", "..!b.jpg")(p), b"..!b", b"..\\b"),
        r"refused",
    ),
    "zip without images": (archive("a.txt", data=b"text"), r"no images in .*1 \.txt"),
    "empty zip": (archive(), r"no images in .*it is empty"),
    "zip that is none": (written(".zip", b"text"), r"not a complete zip"),
    "zip of no bytes": (written(".zip", b""), r"not a complete zip"),
    "truncated zip": (cut_zip, r"not a complete zip"),
    "zip with a damaged entry": (damaged_entry, r"1 of 2 .*a\.jpg: Bad CRC-32"),
    "zip with a password": (encrypted, r"password-protected"),
    "float array": (npy(U8.astype(np.float32)), r"holds float32, but images must be uint8"),
    "NaN array": (npy(NAN), r"holds float32, but images must be uint8"),
    "int64 array": (npy(U8.astype(np.int64)), r"holds int64"),
    "array of objects": (npy(np.array([{}]), allow_pickle=True), r"not a complete \.npy"),
    "array of two dimensions": (npy(U8[0, ..., 0]), r"shape \(32, 32\), but images must be"),
    "array of two channels": (npy(U8[..., :2]), r"1, 3 or 4 channels"),
    "array of no images": (npy(U8[:0]), r"holds no pixels"),
    "truncated npy": (cut_npy, r"not a complete \.npy"),
    "npy that is none": (written(".npy", b"text"), r"not a complete \.npy"),
    "npy of no bytes": (written(".npy", b""), r"not a complete \.npy"),
    "npz under the name npy": (
        lambda p: npz(x=U8)(p).rename(p.with_suffix(".npy")),
        r"not a \.npy file",
    ),
    "npy under the name npz": (
        lambda p: npy(U8)(p).rename(p.with_suffix(".npz")),
        r"not an \.npz archive",
    ),
    "npz of no bytes": (written(".npz", b""), r"not a complete \.npz"),
    "npz with a damaged array": (damaged_npz, r"not a complete \.npz"),
    "npz without images": (npz(a=U8, b=U8), r"holds a, b, and images are called"),
    "npz of nothing": (npz(), r"it holds nothing"),
    "npz with too few labels": (npz(images=U8, labels=np.arange(3)), r"must be integers of shape"),
    "npz with NaN labels": (npz(images=U8, labels=np.full(4, np.nan)), r"labels .* float64"),
    "small array": (npy(U8[:, :8, :8]), r"4 of 4 images .*image 0: 8x8"),
    "unknown suffix": (written(".rar", b"text"), r"not a source of images: a file must end in"),
    "single image": (written(".jpg", jpeg()), r"single images belong in a folder"),
    "parquet that is none": (written(".parquet", b"text"), r"cannot be read as parquet"),
    "parquet without images": (parquet(x=[1, 2]), r"no column of images.*\['x'\]"),
    "parquet of no rows": (parquet(image=np.zeros(0, "S1")), r"holds no rows"),
    "parquet with an empty cell": (parquet(image=[jpeg(), None]), r"row 1: no image in this row"),
    "parquet that only names files": (
        parquet(image=[{"bytes": None, "path": "/etc/hostname"}]),
        r"row 0: no image in this row",
    ),
    "damaged parquet": (damaged_parquet, r"cannot be used|is damaged|cannot be read as parquet"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_source(case: str, tmp_path: Path) -> None:
    make, says = BAD_SOURCES[case]
    source = make(tmp_path / "source")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=says) as caught:
        open_images(source, 16, cache_dir=tmp_path / "cache", progress=False)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": -64}, "image_size is -64"),
        ({"image_size": (64, 64, 3)}, r"image_size is \(64, 64, 3\)"),
        ({"image_size": (64, 0)}, "image_size is"),
        ({"image_size": (64.0, 64)}, "image_size is"),
        ({"image_size": 1 << 20}, "from 1 to 16384"),
        ({"image_size": True}, "image_size is True"),
        ({"image_size": "64"}, "image_size is '64'"),
        ({"image_size": 64.0}, "image_size is 64.0"),
        ({"channels": 2}, "channels is 2, but must be 1, 3, 4 or None"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_bad_setting(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        open_images(folder(tmp_path / "a"), cache_dir=tmp_path / "cache", **arguments)


def test_bad_images_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    for kind in ("a", "b"):
        (source / kind).mkdir(parents=True)
        (source / kind / "1.jpg").write_bytes(jpeg())
        (source / kind / "2.jpg").write_bytes(jpeg()[:600])
        (source / kind / "3.jpg").write_bytes(jpeg(8, 8))
    images = open_images(source, 16, cache_dir=tmp_path / "cache", skip_bad=True)
    assert (len(images), images.skipped) == (2, 4)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    # The count is kept in the file ...
    again = open_images(source, 16, cache_dir=tmp_path / "cache", skip_bad=True)
    assert (again.skipped, again.path) == (4, images.path)
    # ... which is not used in silence by someone who did not ask to skip.
    with pytest.raises(DataError, match="2 of 6 images"):
        open_images(source, 16, cache_dir=tmp_path / "cache")
    assert open_images(source, 16, cache_dir=tmp_path / "cache", skip_bad=True).skipped == 4


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "a.jpg").write_bytes(b"text")
    (source / "b.jpg").write_bytes(jpeg(8, 8))
    with pytest.raises(DataError, match=r"all 2 were skipped .*a\.jpg: not an image, b\.jpg: only"):
        open_images(source, 16, cache_dir=tmp_path / "cache", skip_bad=True)


def test_smaller_images_are_enlarged_on_request(tmp_path: Path) -> None:
    source = folder(tmp_path / "tree", small__jpg=jpeg(9, 12))
    images = open_images(source, 16, cache_dir=tmp_path / "cache", upscale=True)
    assert (len(images), images.skipped) == (2, 0)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch) -> None:
    source = folder(tmp_path / "tree", locked__jpg=jpeg())
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        # Permissions do not stop the superuser, as whom tests often run.
        if path.name == "locked.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"1 of 2 .*locked\.jpg: Permission denied"):
        open_images(source, 16, cache_dir=tmp_path / "cache")


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch) -> None:
    source = folder(tmp_path / "tree")
    (source / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"tree/locked cannot be read: Permission denied"):
        open_images(source, 16, cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "tree")
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cache folder .*file/cache: Not a directory.*cache_dir"):
        open_images(source, 16, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [
        ("sklearn", "digits", "demo"),
        ("datasets", "someone/pictures", "hub"),
        ("pyarrow", "a.parquet", "hub"),
    ],
)
def test_missing_extras_are_named(module, source, extra, tmp_path: Path, monkeypatch) -> None:
    if source.endswith(".parquet"):
        source = tmp_path / source
        source.write_bytes(b"PAR1")
    real_import = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=rf"pip install 'fastgan\[{extra}\]'"):
        open_images(source, 16, cache_dir=tmp_path / "cache")


def test_a_hub_data_set_that_cannot_be_opened(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("the hub is away\nand more lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FastganError, match=r"neither a file or folder here nor .* hub is away$"):
        open_images("someone/pictures", 16, cache_dir=tmp_path / "cache")
