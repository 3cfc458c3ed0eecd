"""Checkpoints: a folder of safetensors files and one JSON, written whole or not at all.

    checkpoints/00000500/{generator,discriminator,ema,optimizers}.safetensors and state.json

A checkpoint is written into a hidden temporary folder, flushed to the disk and renamed, so that a
folder with a step's name is always complete. `state.json` holds a SHA-256 of every file and of
itself: what was damaged later is recognised, named, and never loaded. There is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import fastgan
from fastgan.errors import CheckpointError
from fastgan.training.config import TrainConfig
from fastgan.training.randomness import ALGORITHM

FILES = ("generator", "discriminator", "ema", "optimizers")
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and whose checksums are right.

    `tensors` is file name -> tensor name -> tensor on the CPU, for the files asked for.
    """

    path: Path
    step: int
    config: TrainConfig
    data_digest: str
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    config: TrainConfig,
    data_digest: str,
    keep: int,
) -> Path:
    """Write `folder`/<step> atomically, then drop all but the newest `keep` checkpoints.

    Returns the checkpoint's folder. Raises `OSError` where the disk refuses; then nothing of the
    new checkpoint is left, and the older ones are untouched.
    """
    final = folder / f"{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.part"
    temporary.mkdir(parents=True)
    try:
        checksums = {}
        for name in FILES:
            checksums[f"{name}.safetensors"] = _write(
                temporary / f"{name}.safetensors",
                safetensors.torch.save(
                    {key: value.detach().cpu().contiguous() for key, value in tensors[name].items()}
                ),
            )
        content = {
            "format": FORMAT,
            "step": step,
            "config": config.to_json(),
            "random": {"algorithm": ALGORITHM, "seed": config.seed, "next_step": step},
            "data": {"digest": data_digest, "next_batch": step * config.discriminator_steps},
            "versions": {
                "fastgan": fastgan.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "sha256": checksums,
        }
        sealed = {**content, "seal": _seal(content)}
        _write(temporary / "state.json", json.dumps(sealed, indent=2).encode())
        flush(temporary)
        os.rename(temporary, final)
        flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left."""
    for path in folder.glob(".*.part"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def load_checkpoint(path: Path, files: tuple[str, ...] = FILES) -> Checkpoint:
    """Read a checkpoint's folder, or only some of its files, verifying every checksum.

    Raises `CheckpointError` that names the damaged file and says how to go on.
    """
    state = _read_state(path)
    tensors = {}
    for name in files:
        file = path / f"{name}.safetensors"
        content = _read(file)
        if hashlib.sha256(content).hexdigest() != state["sha256"].get(file.name):
            raise _damaged(file, "its checksum is not the one in state.json")
        tensors[name] = safetensors.torch.load(content)
    return Checkpoint(
        path,
        state["step"],
        TrainConfig.from_json(state["config"], str(path / "state.json")),
        state["data"]["digest"],
        tensors,
    )


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    try:
        state = json.loads(_read(file))
    except ValueError as error:
        raise _damaged(file, "it is not JSON") from error
    if not isinstance(state, dict) or state.pop("seal", None) != _seal(state):
        raise _damaged(file, "its content is not what was written")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{file} has format {state['format']}, and this fastgan reads format {FORMAT}:"
            " use the fastgan version that wrote it"
        )
    return state


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(file, "it is missing") from error


def _damaged(file: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {file.parent} is damaged at {file.name} ({how}):"
        " delete that folder to go on from the checkpoint before it"
    )


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(file: Path, content: bytes) -> str:
    """Write `content` through to the disk; returns its SHA-256."""
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(content).hexdigest()


def flush(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
