"""Modules import downwards, and README names every variable of the environment."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Top-level modules by floor; every other one (kernels, native, errors ...) is of the lowest.
FLOORS = {"ops": 1, "nn": 2, "models": 2, "data": 2, "training": 3, "cli": 4, "__main__": 4}
SOURCES = sorted([*ROOT.glob("fastgan/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def room(module: str) -> str:
    """The part of a module's name that its floor goes by: "ops" of "fastgan.ops.conv2d"."""
    return [*module.split("."), ""][1]


def imported(source: Path) -> Iterator[str]:
    """The modules of fastgan that a file names in an import, at its top or in a function."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "fastgan":
                yield from (f"fastgan.{name.name}" for name in node.names)
            elif node.module.startswith("fastgan."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("fastgan."))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_nothing_from_a_floor_above(source: Path) -> None:
    parts = source.relative_to(ROOT).with_suffix("").parts
    here = FLOORS.get(parts[1], 0) if parts[0] == "fastgan" else 0
    above = [name for name in imported(source) if FLOORS.get(room(name), 0) > here]
    assert not above


def test_readme_names_every_variable_of_the_environment() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in [*SOURCES, ROOT / "setup.py"])
    used = set(re.findall(r"[\"'](FASTGAN_[A-Z_]+)[\"']", code))
    readme = set(re.findall(r"FASTGAN_[A-Z_]+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert used == readme
