"""Where the CUDA library comes from and what happens if it cannot be had.

There is no GPU and no minute to compile here: a device is pretended, and so is the compiler.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgan import native_build, native_cuda, native_cuda_build
from fastgan.errors import NativeBuildError


class Pretence:
    """A compiler that writes a file, and a loader that remembers what it was given."""

    def __init__(self) -> None:
        self.compiled = 0
        self.loaded: list[Path] = []
        self.error: str | None = None

    def compile_library(self, folder: Path) -> Path:
        self.compiled += 1
        if self.error is not None:
            raise NativeBuildError(self.error)
        library = folder / native_cuda_build.LIBRARY
        library.write_bytes(b"a library")
        native_build.write_record(folder, native_cuda._key(), "nvcc", native_cuda_build.LIBRARY)
        return library

    def load_library(self, path: str) -> None:
        self.loaded.append(Path(path))


@pytest.fixture
def pretence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretence:
    pretence = Pretence()
    monkeypatch.setattr(native_cuda_build, "compiler_obstacle", lambda: None)
    monkeypatch.setattr(native_cuda_build, "compile_library", pretence.compile_library)
    monkeypatch.setattr(native_cuda.torch.ops, "load_library", pretence.load_library)
    monkeypatch.setattr(native_cuda, "obstacle", lambda: None)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGAN_NATIVE", raising=False)
    forget(monkeypatch)
    return pretence


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows."""
    for name, value in (("_folder", None), ("_reason", None), ("_tried", False)):
        monkeypatch.setattr(native_cuda, name, value)


def test_it_is_compiled_once_and_then_found(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert native_cuda.usable() is None
    assert native_cuda.usable() is None
    assert "compiling the CUDA kernels" in capsys.readouterr().err
    forget(monkeypatch)
    assert native_cuda.usable() is None
    assert pretence.compiled == 1
    assert [path.parent for path in pretence.loaded] == [native_cuda.folder()] * 2


def test_a_truncated_library_is_compiled_again(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_cuda.usable()
    pretence.loaded[0].write_bytes(b"a lib")
    forget(monkeypatch)
    assert native_cuda.usable() is None
    assert pretence.compiled == 2
    assert pretence.loaded[1].read_bytes() == b"a library"


def test_what_a_killed_build_left_is_cleared_away(pretence: Pretence, tmp_path: Path) -> None:
    abandoned = tmp_path / "native" / f".{native_cuda._key()}.abandoned"
    abandoned.mkdir(parents=True)
    assert native_cuda.usable() is None
    assert not abandoned.exists()


def test_a_compiler_that_fails_is_not_tried_again(pretence: Pretence) -> None:
    pretence.error = "nvcc failed (1): error: no such thing"
    assert native_cuda.usable() == pretence.error
    assert native_cuda.usable() == pretence.error
    assert pretence.compiled == 1


def test_another_process_tries_again_when_it_is_told_to(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretence.error = "nvcc failed (1): error: no such thing"
    native_cuda.usable()
    assert f"CUDA C++ kernels are off, others serve instead: {pretence.error}" in (
        capsys.readouterr().err
    )
    forget(monkeypatch)
    told = f"the last build failed: {pretence.error} (`fastgan doctor --build` tries again)"
    assert native_cuda.status().reason == told
    assert native_cuda.usable() == told
    assert pretence.compiled == 1
    pretence.error = None
    native_cuda.build()
    assert pretence.compiled == 2
    assert native_cuda.usable() is None
    forget(monkeypatch)
    assert native_cuda.usable() is None
    assert pretence.compiled == 2


def test_what_is_compiled_is_loaded_by_asking_for_its_status(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_cuda.build()
    forget(monkeypatch)
    assert native_cuda.status().usable
    assert pretence.compiled == 1


def test_require_makes_its_absence_an_error(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretence.error = "nvcc failed (1)"
    monkeypatch.setenv("FASTGAN_NATIVE", "require")
    with pytest.raises(NativeBuildError, match="FASTGAN_NATIVE=require: nvcc failed"):
        native_cuda.usable()


def test_a_library_that_cannot_be_loaded_is_a_reason(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError("undefined symbol: something")

    monkeypatch.setattr(native_cuda.torch.ops, "load_library", refuse)
    assert "could not be loaded: undefined symbol" in native_cuda.usable()


def test_a_cache_that_cannot_be_written_is_a_reason(
    pretence: Pretence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "file"))
    assert "FASTGAN_CACHE" in native_cuda.usable()


def test_off_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_NATIVE", "off")
    assert native_cuda.obstacle() == "FASTGAN_NATIVE=off"


def test_status_builds_nothing_and_says_what_is_there(pretence: Pretence) -> None:
    assert "not compiled yet" in native_cuda.status().reason
    assert pretence.compiled == 0
    native_cuda.usable()
    status = native_cuda.status()
    assert status.usable
    assert status.reason is None
    assert status.folder == native_cuda.folder()
