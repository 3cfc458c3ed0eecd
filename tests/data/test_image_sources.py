"""Every kind of source: what is found in it, in which order, with which labels."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.data import PackedImages, open_images


@pytest.fixture
def opened(tmp_path: Path):
    """open_images with a cache of the test's own and 16x16 images."""

    def open_it(source, image_size=16, channels=None, **options) -> PackedImages:
        options.setdefault("cache_dir", tmp_path / "cache")
        return open_images(source, image_size, channels, progress=False, **options)

    return open_it


def png(value: int, mode: str = "RGB", size: int = 16) -> bytes:
    """An image of one grey value: what it decodes to says which image it is."""
    buffer = io.BytesIO()
    Image.new(mode, (size, size), value if mode == "L" else (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(folder: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def values(images: PackedImages) -> list[int]:
    """The grey value of every image."""
    assert (images.pixels == images.pixels[:, :1, :1]).all()
    return images.pixels[:, 0, 0, 0].tolist()


CLASS_TREE = {
    "dog/2.png": png(22),
    "cat/10.png": png(10),
    "cat/deep/er/1.png": png(11),
    "dog/1.PNG": png(21),
    ".hidden/x.png": png(1),
    "cat/.x.png": png(2),
    "notes.txt": b"not an image",
    "__MACOSX/cat/10.png": b"resource fork",
}


@pytest.fixture(params=["folder", "zip", "zip in one folder"])
def class_source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return write_tree(tmp_path / "tree", CLASS_TREE)
    prefix = "all/of/them/" if request.param == "zip in one folder" else ""
    return write_zip(tmp_path / "t.zip", {prefix + n: data for n, data in CLASS_TREE.items()})


def test_class_folders_give_labels(class_source: Path, opened) -> None:
    images = opened(class_source)
    assert values(images) == [10, 11, 21, 22]
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert (images.image_size, images.channels, images.skipped) == ((16, 16), 3, 0)


@pytest.mark.parametrize(
    "names", [["a.png", "b.png"], ["one/a.png", "one/b.png"], ["a.png", "dogs/b.png", "cats/c.png"]]
)
def test_there_are_no_labels_without_class_folders(names: list[str], tmp_path, opened) -> None:
    images = opened(write_tree(tmp_path / "flat", {name: png(5) for name in names}))
    assert images.labels is None
    assert images.classes == ()
    assert len(images) == len(names)


def test_zip_with_backslashes_has_class_folders(tmp_path: Path, opened) -> None:
    path = write_zip(tmp_path / "w.zip", {"b/1.png": png(1), "a/2.png": png(2)})
    path.write_bytes(path.read_bytes().replace(b"b/1.png", b"b\\1.png"))
    assert opened(path).classes == ("a", "b")


def test_zip_is_not_extracted(tmp_path: Path, opened) -> None:
    source = write_zip(tmp_path / "t.zip", {"a.png": png(1)})
    images = opened(source)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {images.path, source}


def test_symbolic_links_are_followed_once(tmp_path: Path, opened) -> None:
    folder = write_tree(tmp_path / "tree", {"a/1.png": png(1), "b/2.png": png(2)})
    elsewhere = write_tree(tmp_path / "elsewhere", {"3.png": png(3)})
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "c").symlink_to(elsewhere)
    (folder / "b" / "4.png").symlink_to(elsewhere / "3.png")
    assert values(opened(folder)) == [1, 2, 3, 3]


def test_pipes_are_not_opened(tmp_path: Path, opened) -> None:
    folder = write_tree(tmp_path / "tree", {"1.png": png(1)})
    os.mkfifo(folder / "2.png")
    assert values(opened(folder)) == [1]


def test_file_names_that_are_no_text(tmp_path: Path, opened) -> None:
    folder = write_tree(tmp_path / "tree", {"ok.png": png(1)})
    weird = os.fsdecode(os.fsencode(folder) + b"/\xff\n.png")
    Path(weird).write_bytes(png(2))
    assert sorted(values(opened(folder))) == [1, 2]


def test_channels_are_the_sources_own(tmp_path: Path, opened) -> None:
    grey = {f"{k:02}.png": png(k, "L") for k in range(40)}
    assert opened(write_tree(tmp_path / "grey", grey)).channels == 1
    mixed = opened(write_tree(tmp_path / "mixed", {**grey, "zz.png": png(99)}))
    assert mixed.channels == 3
    assert values(mixed) == [*range(40), 99]
    assert opened(tmp_path / "mixed", channels=1).channels == 1
    assert opened(tmp_path / "grey", channels=4).pixels.shape == (40, 16, 16, 4)


@pytest.mark.parametrize("size", [16, (16, 16), (16, 24), (40, 20)])
def test_any_height_and_width(size, tmp_path: Path, opened) -> None:
    images = opened(write_tree(tmp_path / "t", {"1.png": png(7, size=48)}), size)
    expected = (size, size) if isinstance(size, int) else size
    assert images.image_size == expected
    assert images.pixels.shape == (1, *expected, 3)


def stack(count: int = 5, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_npy_layouts(tmp_path: Path, opened) -> None:
    layouts = {
        "nhwc": stack(),
        "nchw": stack().transpose(0, 3, 1, 2),
        "fortran": np.asfortranarray(stack()),
    }
    for name, array in layouts.items():
        np.save(tmp_path / f"{name}.npy", array)
        images = opened(tmp_path / f"{name}.npy")
        assert np.array_equal(images.pixels, stack())
        assert images.labels is None
    np.save(tmp_path / "grey.npy", stack()[..., 0])
    assert np.array_equal(opened(tmp_path / "grey.npy").pixels[..., 0], stack()[..., 0])


def test_npz_with_labels(tmp_path: Path, opened) -> None:
    np.savez(tmp_path / "a.npz", x=stack(), y=np.array([[7], [3], [3], [7], [9]], np.uint8))
    images = opened(tmp_path / "a.npz")
    assert images.classes == ("3", "7", "9")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 0, 1, 2]
    np.savez_compressed(tmp_path / "b.npz", anything=stack())
    assert np.array_equal(opened(tmp_path / "b.npz").pixels, stack())


def test_digits_are_enlarged_smoothly(opened) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images = opened("digits", 32)
    assert len(images) == 1797
    assert (images.channels, images.image_size) == (1, (32, 32))
    assert images.classes == tuple("0123456789")
    assert images.labels is not None
    assert set(images.labels.tolist()) == set(range(10))
    assert int(images.pixels.max()) == 255
    assert len(np.unique(images.pixels)) > 200  # smooth: more values than the 17 it was drawn in
    originals = load_digits().images
    assert np.array_equal(opened("digits", 8).pixels[..., 0], np.rint(originals * (255 / 16)))


def test_a_folder_called_digits_is_opened_by_its_path(tmp_path, opened, monkeypatch) -> None:
    write_tree(tmp_path / "digits", {"1.png": png(1)})
    monkeypatch.chdir(tmp_path)
    assert len(opened("./digits")) == 1
    assert len(opened(Path("digits"))) == 1


def write_parquet(path: Path, count: int, features: dict | None = None, start: int = 0) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": png(start + k), "path": f"{k}.png"} for k in range(count)]
    table = pa.table({"picture": cells, "label": pa.array([k % 3 for k in range(count)])})
    if features:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=7)
    return path


def test_parquet_file(tmp_path: Path, opened) -> None:
    images = opened(write_parquet(tmp_path / "a.parquet", 70))
    assert values(images) == list(range(70))
    assert images.classes == ("0", "1", "2")


def test_parquet_folder_with_named_classes(tmp_path: Path, opened) -> None:
    features = {
        "picture": {"_type": "Image"},
        "label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"},
    }
    folder = tmp_path / "shards"
    folder.mkdir()
    write_parquet(folder / "train-0.parquet", 10, features)
    write_parquet(folder / "train-1.parquet", 5, features, start=10)
    images = opened(folder)
    assert values(images) == list(range(15))
    assert images.classes == ("ant", "bee", "cow")
    assert images.labels is not None
    assert images.labels[:11].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0]


def test_parquet_of_plain_bytes(tmp_path: Path, opened) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"img": [png(1), png(2)], "n": [1, 2]}), tmp_path / "a.parquet")
    images = opened(tmp_path / "a.parquet")
    assert values(images) == [1, 2]
    assert images.labels is None


def test_hub_data_set(tmp_path: Path, opened, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    rows = [{"image": {"bytes": png(k), "path": None}, "label": k % 2} for k in range(6)]
    local = datasets.Dataset.from_list(rows, features=features)
    asked = []

    def load_dataset(name: str, split: str):
        asked.append((name, split))
        return local

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    images = opened("someone/pictures")
    assert asked == [("someone/pictures", "train")]
    assert values(images) == list(range(6))
    assert images.classes == ("x", "y")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
