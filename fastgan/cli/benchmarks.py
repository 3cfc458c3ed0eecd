"""`fastgan bench`: the benchmark suite, which stands beside the package in the source tree."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

import fastgan
from fastgan.errors import RunError

# What follows `bench` belongs to the suite, `--help` too.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def bench(context: typer.Context) -> None:
    """Measure what is faster, where and why (the same as `python -m bench` in the source tree)."""
    root = Path(fastgan.__file__).resolve().parent.parent
    if not (root / "bench" / "cli.py").exists():
        raise RunError(
            "the benchmark suite is part of the source tree, not of the installed package:"
            " run `python -m bench` there"
        )
    sys.path.insert(0, str(root))
    from bench.cli import app

    app(context.args, prog_name="fastgan bench")
