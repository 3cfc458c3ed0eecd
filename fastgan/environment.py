"""What the environment says: choices that FASTGAN_* variables name, and the folder for caches."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fastgan.errors import ConfigError


def choice(name: str, allowed: Sequence[str]) -> str:
    """Return what the variable `name` says, in lower case; `allowed[0]` if it is not set.

    Raises:
        ConfigError: it is none of `allowed`.
    """
    value = os.environ.get(name, "").strip().lower() or allowed[0]
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}")
    return value


def cache_folder() -> Path:
    """Return `$FASTGAN_CACHE`, or `fastgan` in the platform's cache folder where it is not set."""
    chosen = os.environ.get("FASTGAN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastgan"
