"""Errors on the command line: one sentence, exit code 1, nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from bad_inputs import ROWS, array, main_quietly, train, trained
from PIL import Image

from fastgan.cli import main
from fastgan.errors import DataError


def everything(folder: Path) -> dict[str, bytes]:
    """Every file and folder but those of the image cache, and their contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in sorted(folder.rglob("*"))
        if "cache" not in path.relative_to(folder).parts
    }


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastgan.training.loop.can_draw", lambda: False)
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_one_sentence_and_nothing_half_written(name, workplace, capsys) -> None:
    prepare, message = ROWS[name]
    arguments = prepare(workplace)
    before = everything(workplace)
    capsys.readouterr()
    assert main_quietly(arguments) == 1
    said = capsys.readouterr().err
    assert_one_sentence(said, message)
    assert everything(workplace) == before
    assert not list(workplace.rglob("*.part*"))


def assert_one_sentence(said: str, message: str) -> None:
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert re.search(message, said), said


def test_the_table_is_long_enough() -> None:
    assert len(ROWS) >= 30


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_refuses_is_said_and_not_left(code, workplace, capsys, monkeypatch) -> None:
    source = array(workplace)
    mkdir = Path.mkdir

    def refusing(path, *arguments, **settings):
        if path.name == "run":
            raise OSError(code, os.strerror(code), str(path))
        mkdir(path, *arguments, **settings)

    monkeypatch.setattr(Path, "mkdir", refusing)
    assert main_quietly(train(source)) == 1
    assert_one_sentence(
        capsys.readouterr().err, f"the run folder run cannot be written: {os.strerror(code)}"
    )
    assert not (workplace / "run").exists()


def test_a_disk_that_fills_while_sampling_leaves_nothing(workplace, capsys, monkeypatch) -> None:
    trained(workplace)
    capsys.readouterr()
    save = Image.Image.save

    def filling(image, where, *arguments):
        if str(where).endswith("000002.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))
        save(image, where, *arguments)

    monkeypatch.setattr(Image.Image, "save", filling)
    before = everything(workplace)
    assert main_quietly(["sample", "run", "--count=4", "--out=many"]) == 1
    assert_one_sentence(capsys.readouterr().err, "No space left on device")
    assert everything(workplace) == before


@pytest.mark.parametrize("arguments", [["train", "--stesp=3"], ["learn"], ["resume"], ["sample"]])
def test_a_wrong_line_exits_with_2(arguments, workplace, capsys) -> None:
    assert main_quietly(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(workplace) -> None:
    with pytest.raises(DataError, match="nowhere"):
        main([*train("nowhere"), "--debug"])


def test_defects_keep_their_traceback(workplace, monkeypatch) -> None:
    def broken(*arguments, **settings):
        raise RuntimeError("a defect")

    monkeypatch.setattr("fastgan.training.trainer.open_images", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(train("nowhere"))


def test_too_little_memory_says_what_to_do(workplace, capsys, monkeypatch) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names its own."""

    def hungry(*arguments, **settings):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr("fastgan.training.trainer.open_images", hungry)
    assert main_quietly(train("digits")) == 1
    assert_one_sentence(capsys.readouterr().err, "not enough memory: use a smaller --batch-size")
    assert not (workplace / "run").exists()
