"""Opt-in autotuning of the convolution tiles: FASTGAN_AUTOTUNE=1.

The first call of each shape times the best few tiles of the shipped table on the data at hand and
keeps the fastest, in this process and in a file, so that later runs do not time again. The file is
$FASTGAN_CACHE/conv_autotune.json, by default under ~/.cache/fastgan. Without the variable, or with
0, nothing is timed: the table's arithmetic decides, which is the same on every run.

wgrad's rounding depends on how the reduction is split, hence on the tile: runs that must be
bit-identical share the file or leave autotuning off.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import triton

from fastgan.environment import cache_folder, choice

Tile = TypeVar("Tile")

# How many tiles of the table are compiled and timed; the estimate orders them.
CANDIDATES = 4

_chosen: dict[str, str] = {}


def enabled(device: torch.device) -> bool:
    """Whether calls on a device are timed: asked for, and not inside a graph capture.

    Raises:
        ConfigError: FASTGAN_AUTOTUNE is neither 0 nor 1.
    """
    return (
        choice("FASTGAN_AUTOTUNE", ("0", "1")) == "1"
        and device.type == "cuda"
        and not torch.cuda.is_current_stream_capturing()
    )


def cache_file() -> Path:
    """Where the choices are kept."""
    return cache_folder() / "conv_autotune.json"


def fastest(
    key: str,
    candidates: Sequence[Tile],
    run: Callable[[Tile], None],
    measure: Callable[[Callable[[], None]], float] = triton.testing.do_bench,
) -> Tile:
    """The candidate that runs fastest, timed once for each key.

    Args:
        key: names the call and the device.
        candidates: tiles, best estimate first; their `str` identifies them in the file.
        run: launches the call with a tile; must be safe to repeat.
        measure: milliseconds that a callable takes.

    Returns:
        One of the candidates.
    """
    key = f"{key}|triton {triton.__version__}"
    if not _chosen:
        _chosen.update(_read(cache_file()))
    for candidate in candidates:
        if str(candidate) == _chosen.get(key):
            return candidate
    times = [measure(lambda tile=tile: run(tile)) for tile in candidates[:CANDIDATES]]
    best = candidates[times.index(min(times))]
    _chosen[key] = str(best)
    _write(cache_file(), {**_read(cache_file()), key: str(best)})
    return best


def _read(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write(path: Path, choices: dict[str, str]) -> None:
    """Replaces the file in one step, so that a process that is killed leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8"
    ) as file:
        json.dump(choices, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
