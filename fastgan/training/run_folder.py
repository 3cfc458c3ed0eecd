"""The run folder: who may write it, and how each of its files stays whole.

RUN/config.json           the settings, as TrainConfig.to_json gives them
RUN/metrics.jsonl         one line a step: the same bytes however often the run was interrupted
RUN/samples/00000500.png  grids of the averaged generator on latents that never change
RUN/curves.png            the losses and D's outputs (with the 'plot' extra)
RUN/tensorboard/          event files (with the 'log' extra and --tensorboard)
RUN/checkpoints/00000500/ see checkpoint.py
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fastgan.errors import CheckpointError, RunError
from fastgan.training.checkpoint import list_checkpoints, remove_unfinished
from fastgan.training.config import TrainConfig

LOCK = ".lock"


class RunFolder:
    """A run folder on disk: `new` for a run that starts, `open` for one that goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.curves = path / "curves.png"

    @classmethod
    def new(cls, path: str | Path) -> RunFolder:
        """A folder for a new run: missing or empty. Nothing is written yet.

        Raises `RunError` where the folder holds something.
        """
        run = cls(Path(path))
        if run.config_file.exists():
            raise RunError(
                f"{path} already holds a run: go on with it by `fastgan resume {path}`,"
                " or choose another folder with --out"
            )
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{path} is a file: choose a folder with --out")
        with run.writing():
            # Hidden files are what a process killed at its start leaves.
            strangers = run.path.is_dir() and any(
                not entry.name.startswith(".") for entry in run.path.iterdir()
            )
        if strangers:
            raise RunError(
                f"{path} is not empty and is not a fastgan run: choose another folder with --out"
            )
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder; raises `CheckpointError` where there is none."""
        run = cls(Path(path))
        if not run.path.is_dir():
            raise CheckpointError(f"there is no run folder {path}: `fastgan train` makes one")
        if not run.config_file.is_file():
            raise CheckpointError(f"{path} is not a fastgan run: it holds no config.json")
        return run

    @contextmanager
    def training(self, config: TrainConfig) -> Iterator[None]:
        """Within: this process alone trains here, with `config` in config.json.

        The folder is made if it is missing, and not left behind where it cannot be written. The
        lock is the kernel's and dies with its process, however that dies.
        """
        with self.writing():
            lock = self._take(config)
        with lock:
            yield

    def _take(self, config: TrainConfig) -> IO[str]:
        missing = _first_missing(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with ExitStack() as opened:
                lock = opened.enter_context(open(self.path / LOCK, "w"))
                _lock(lock, self.path)
                for folder in (self.path, self.samples, self.checkpoints):
                    remove_unfinished(folder)
                replace_file(self.config_file, config.to_text().encode())
                opened.pop_all()  # the lock stays open: closing it would release it
            return lock
        except OSError:
            if missing is not None:
                shutil.rmtree(missing, ignore_errors=True)
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within: a disk that refuses becomes a `RunError` that says what to do."""
        try:
            yield
        except OSError as error:
            kept = self.newest_checkpoint()
            go_on = (
                f"; once that is put right, `fastgan resume {self.path}` goes on"
                f" from step {int(kept.name)}"
                if kept is not None
                else ""
            )
            reason = error.strerror or str(error)
            raise RunError(
                f"the run folder {self.path} cannot be written: {reason}{go_on}"
            ) from error

    def read_config(self) -> TrainConfig:
        """The configuration in config.json; raises `CheckpointError` where it is not one."""
        try:
            values = json.loads(self.config_file.read_text())
        except ValueError as error:
            raise CheckpointError(
                f'{self.config_file} is not JSON: restore it from the "config" in the'
                " newest checkpoint's state.json"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.config_file} is not a configuration of fastgan")
        return TrainConfig.from_json(values, str(self.config_file))

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None where there is none yet."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def append_metrics(self, rows: Iterable[dict[str, float]]) -> None:
        """Add one line for each step to metrics.jsonl."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.writing(), open(self.metrics_file, "ab") as stream:
            end = stream.tell()
            try:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.truncate(self.metrics_file, end)
                raise

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole, oldest first."""
        if not self.metrics_file.exists():
            return []
        rows = []
        for line in self.metrics_file.read_text().splitlines():
            with suppress(ValueError):  # a line cut short by a kill
                rows.append(json.loads(line))
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Drop the lines after `step`, which the resumed run writes again."""
        kept = [row for row in self.read_metrics() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        with self.writing():
            replace_file(self.metrics_file, text.encode())


def replace_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _lock(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process is training into {path}: wait for it or stop it") from None


def next_run_folder(root: Path, name: str) -> Path:
    """The first of root/0001-name, root/0002-name ... whose number is free."""
    numbers = [
        int(path.name[:4])
        for path in (root.iterdir() if root.is_dir() else ())
        if path.name[:4].isdigit()
    ]
    return root / f"{max(numbers, default=0) + 1:04d}-{name}"


def _first_missing(path: Path) -> Path | None:
    """The topmost folder that making `path` would make, or None where it exists."""
    missing = None
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing = folder
    return missing
