"""What a user can get wrong: how to bring it about, the line to run, the sentence to expect."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastgan.cli import main

SMALL = [
    "--image-size=16",
    "--batch-size=4",
    "--latent-dim=4",
    "--generator-width=2",
    "--discriminator-width=2",
    "--steps=2",
    "--sample-count=4",
    "--device=cpu",
]

Row = Callable[[Path], list[str]]
ROWS: dict[str, tuple[Row, str]] = {}


def row(message: str) -> Callable[[Row], Row]:
    """Adds a row to the table: what is prepared in a folder, the line to run, the message."""

    def add(prepare: Row) -> Row:
        ROWS[prepare.__name__.replace("_", " ")] = (prepare, message)
        return prepare

    return add


def train(source: object, *options: str) -> list[str]:
    return ["train", str(source), *SMALL, "--out", "run", *options]


def array(folder: Path, count: int = 8, size: int = 16, dtype: str = "u1", name: str = "a") -> Path:
    path = folder / f"{name}.npy"
    np.save(path, np.ones((count, size, size, 3), dtype))
    return path


def pictures(folder: Path, count: int = 6, size: int = 16) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (size, size), (index, 0, 0)).save(folder / f"{index}.jpg")
    return folder


def trained(folder: Path) -> Path:
    """A finished run of two steps in `folder`/run."""
    main_quietly(train(array(folder)))
    return folder / "run"


def main_quietly(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    return int(done.value.code or 0)


# The source of the images.


@row(r"no file or folder 'nowhere'")
def a_missing_path(tmp: Path) -> list[str]:
    return train("nowhere")


@row(r"no images|empty")
def an_empty_folder(tmp: Path) -> list[str]:
    (tmp / "photos").mkdir()
    return train("photos")


@row(r"2\.jpg.*--skip-bad")
def a_truncated_jpeg(tmp: Path) -> list[str]:
    file = pictures(tmp / "photos") / "2.jpg"
    file.write_bytes(file.read_bytes()[:200])
    return train("photos")


@row(r"2\.jpg.*--skip-bad")
def a_text_called_jpg(tmp: Path) -> list[str]:
    (pictures(tmp / "photos") / "2.jpg").write_text("not an image")
    return train("photos")


@row(r"photo\.txt")
def a_file_that_is_no_source(tmp: Path) -> list[str]:
    (tmp / "photo.txt").write_text("hello")
    return train("photo.txt")


@row(r"bomb\.png")
def a_decompression_bomb(tmp: Path) -> list[str]:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    (pictures(tmp / "photos") / "bomb.png").write_bytes(png + chunk(b"IEND", b""))
    return train("photos")


@row(r"\.\./")
def a_zip_that_climbs_out(tmp: Path) -> list[str]:
    pictures(tmp / "photos")
    with zipfile.ZipFile(tmp / "evil.zip", "w") as archive:
        archive.write(tmp / "photos" / "1.jpg", "../../1.jpg")
    return train("evil.zip")


@row(r"broken\.zip")
def a_file_called_zip(tmp: Path) -> list[str]:
    (tmp / "broken.zip").write_bytes(b"PK but no more")
    return train("broken.zip")


@row(r"float64|uint8")
def an_array_of_floats(tmp: Path) -> list[str]:
    return train(array(tmp, dtype="f8"))


@row(r"shape|dimensions")
def an_array_of_vectors(tmp: Path) -> list[str]:
    np.save(tmp / "flat.npy", np.ones((8, 768), np.uint8))
    return train("flat.npy")


@row(r"cut\.npy")
def an_array_cut_short(tmp: Path) -> list[str]:
    file = array(tmp, name="cut")
    file.write_bytes(file.read_bytes()[:500])
    return train("cut.npy")


@row(r"smaller|--upscale")
def images_smaller_than_the_target(tmp: Path) -> list[str]:
    return train(array(tmp, size=8))


@row(r"batch_size is 4, but the data set has only 3")
def a_batch_larger_than_the_data_set(tmp: Path) -> list[str]:
    return train(array(tmp, count=3))


# Settings.


@row(r"height 30 cannot be planned.*multiple of 4")
def a_size_that_cannot_be_planned(tmp: Path) -> list[str]:
    return train(array(tmp), "--image-size=30")


@row(r"'large' is not understood")
def a_size_that_is_no_size(tmp: Path) -> list[str]:
    return train(array(tmp), "--image-size=large")


@row(r"precision='fp8' is not one of fp32 or bf16")
def an_unknown_precision(tmp: Path) -> list[str]:
    return train(array(tmp), "--precision=fp8")


@row(r"preset='cover' is not one of")
def an_unknown_preset(tmp: Path) -> list[str]:
    return train(array(tmp), "--preset=cover")


@row(r"makes images of 28x28")
def a_preset_of_another_size(tmp: Path) -> list[str]:
    return train(array(tmp), "--preset=book")


@row(r"objective='love' is not known")
def an_unknown_objective(tmp: Path) -> list[str]:
    return train(array(tmp), "--objective=love")


@row(r"objective='hinge' has no targets")
def labels_that_the_objective_ignores(tmp: Path) -> list[str]:
    return train(array(tmp), "--objective=hinge", "--real-label=0.9")


@row(r"steps=0 is too small: it must be at least 1")
def no_steps(tmp: Path) -> list[str]:
    return train(array(tmp), "--steps=0")


@row(r"seed=-1 is too small")
def a_negative_seed(tmp: Path) -> list[str]:
    return train(array(tmp), "--seed=-1")


@row(r"generator_lr=nan is not a finite number")
def a_learning_rate_that_is_no_number(tmp: Path) -> list[str]:
    return train(array(tmp), "--generator-lr=nan")


@row(r"betas='0\.5' is not two rates")
def one_beta(tmp: Path) -> list[str]:
    return train(array(tmp), "--betas=0.5")


@row(r"channels=2 is not 1, 3 or 4")
def two_channels(tmp: Path) -> list[str]:
    return train(array(tmp), "--channels=2")


@row(r"device='tpu' is not")
def an_unknown_device(tmp: Path) -> list[str]:
    return train(array(tmp), "--device=tpu")


@row(r"device='cuda:63' is not here")
def a_device_that_is_not_here(tmp: Path) -> list[str]:
    return train(array(tmp), "--device=cuda:63")


# The run folder.


@row(r"run is not empty and is not a fastgan run")
def a_foreign_folder_to_train_into(tmp: Path) -> list[str]:
    (tmp / "run").mkdir()
    (tmp / "run" / "thesis.txt").write_text("all of it")
    return train(array(tmp))


@row(r"run is a file")
def a_file_to_train_into(tmp: Path) -> list[str]:
    (tmp / "run").write_text("a file")
    return train(array(tmp))


@row(r"cannot be written: Not a directory")
def a_folder_below_a_file(tmp: Path) -> list[str]:
    (tmp / "file").write_text("a file")
    return train(array(tmp), "--out=file/run")


@row(r"run already holds a run: go on with it by `fastgan resume run`")
def a_run_to_train_into(tmp: Path) -> list[str]:
    trained(tmp)
    return train(tmp / "a.npy")


@row(r"there is no run folder nowhere")
def a_missing_run_to_resume(tmp: Path) -> list[str]:
    return ["resume", "nowhere"]


@row(r"photos is not a fastgan run: it holds no config.json")
def a_foreign_folder_to_resume(tmp: Path) -> list[str]:
    pictures(tmp / "photos")
    return ["resume", "photos"]


@row(r"site/config.json is not a configuration of this fastgan \(unknown: port\)")
def somebody_elses_config_json(tmp: Path) -> list[str]:
    (tmp / "site").mkdir()
    (tmp / "site" / "config.json").write_text('{"port": 80}')
    return ["resume", "site"]


@row(r"config.json is not JSON")
def a_config_json_cut_short(tmp: Path) -> list[str]:
    file = trained(tmp) / "config.json"
    file.write_text(file.read_text()[:100])
    return ["resume", "run", "--steps=4"]


@row(r"damaged at generator\.safetensors \(its checksum")
def a_corrupt_checkpoint(tmp: Path) -> list[str]:
    file = trained(tmp) / "checkpoints" / "00000002" / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return ["resume", "run", "--steps=4"]


@row(r"damaged at optimizers\.safetensors \(it is missing\)")
def a_checkpoint_with_a_file_missing(tmp: Path) -> list[str]:
    (trained(tmp) / "checkpoints" / "00000002" / "optimizers.safetensors").unlink()
    return ["resume", "run", "--steps=4"]


@row(r"damaged at state\.json")
def a_checkpoint_that_was_edited(tmp: Path) -> list[str]:
    file = trained(tmp) / "checkpoints" / "00000002" / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 1'))
    return ["resume", "run", "--steps=4"]


@row(r"batch_size was 4, not 8; precision was \"fp32\", not \"bf16\"")
def changed_hyperparameters_on_resume(tmp: Path) -> list[str]:
    trained(tmp)
    return ["resume", "run", "--steps=4", "--batch-size=8", "--precision=bf16"]


@row(r"already made 2 of 2 steps: ask for more with --steps")
def nothing_left_to_resume(tmp: Path) -> list[str]:
    trained(tmp)
    return ["resume", "run"]


@row(r"the images of .*a\.npy are not those that run was trained on")
def other_images_on_resume(tmp: Path) -> list[str]:
    trained(tmp)
    np.save(tmp / "a.npy", np.zeros((8, 16, 16, 3), np.uint8))
    return ["resume", "run", "--steps=4"]


@row(r"no file or folder '.*a\.npy'")
def images_gone_on_resume(tmp: Path) -> list[str]:
    trained(tmp)
    (tmp / "a.npy").unlink()
    return ["resume", "run", "--steps=4"]


# Sampling.


@row(r"run holds no checkpoint of step 7")
def a_checkpoint_that_was_never_made(tmp: Path) -> list[str]:
    trained(tmp)
    return ["sample", "run", "--step=7", "--out=s.png"]


@row(r"damaged at ema\.safetensors")
def sampling_from_a_corrupt_checkpoint(tmp: Path) -> list[str]:
    (trained(tmp) / "checkpoints" / "00000002" / "ema.safetensors").write_bytes(b"")
    return ["sample", "run", "--out=s.png"]


@row(r"photos exists and is not an empty folder")
def sampling_into_a_full_folder(tmp: Path) -> list[str]:
    trained(tmp)
    pictures(tmp / "photos")
    return ["sample", "run", "--out=photos"]


@row(r"Not a directory|File exists")
def sampling_below_a_file(tmp: Path) -> list[str]:
    trained(tmp)
    return ["sample", "run", "--out=a.npy/s.png"]
