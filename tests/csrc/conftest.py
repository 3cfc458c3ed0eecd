"""The shim library, compiled once for all CUDA tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from simt_library import COMPILER, Library, compile_shim, link_shim


@pytest.fixture(scope="session")
def shim_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object files of the shim and of every kernel family."""
    if COMPILER is None:
        pytest.skip("the CUDA kernels run on the CPU only where there is g++")
    return compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="session")
def shim_library(
    shim_objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Library:
    return link_shim(shim_objects, tmp_path_factory.mktemp("linked"))


@pytest.fixture
def simt(shim_library: Library) -> Iterator[Library]:
    """The library with no buffers, which are released and checked after the test."""
    shim_library.seed(1)
    yield shim_library
    shim_library.release()
