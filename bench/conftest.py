"""Turns what pytest-benchmark measured into the suite's one result format (--bench-json FILE)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-json",
        default=None,
        help="write the operator benchmarks to this file, in the format of `python -m bench`",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--bench-json")
    measured = getattr(session.config, "_benchmarksession", None)
    if target is None or measured is None:
        return
    import torch

    from bench.results import Results, capture_environment
    from bench.test_ops_benchmark import rows_from_benchmarks

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = Results("ops", capture_environment(device, seed=0))
    results.rows = rows_from_benchmarks(measured.benchmarks)
    results.write(Path(target))
