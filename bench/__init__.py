"""The benchmark suite: every claim of speed or memory in this project is made here.

`python -m bench --help` lists the suites. `bench.app` is the typer application, which `fastgan
bench` mounts when it runs from a source tree.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from bench.cli import app

        return app
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
