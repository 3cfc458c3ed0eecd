"""The kernels under the address and undefined-behaviour sanitizers, and AMX tiles in software.

A program without Python runs them: drawn convolutions against float64 (convolution_harness.cpp),
batches of images bit by bit, batch norm, bias and losses for their memory accesses
(kernel_harness.cpp), every result with 1, 2 and 5 threads.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastgan import native, native_build

HERE = Path(__file__).resolve().parent
SANITIZERS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TILES = f'-DFASTGAN_TILES_HEADER="{HERE / "tiles_in_software.h"}"'


def build_harness(folder: Path, levels: list[str], flags: tuple[str, ...]) -> Path:
    """Compile the harness with the kernels of some levels; AMX tiles are in software."""
    compiler, sources = native_build.find_compiler(), native_build.source_folder()
    assert compiler is not None
    assert sources is not None
    kept = [flag for flag in native_build.FLAGS if "TORCH" not in flag and flag != "-O2"]
    units = [
        unit
        for unit in native_build.units(sources)
        if unit.object_name in {f"level.{level}.o" for level in levels}
    ]
    uses = " ".join(f"use({level})" for level in levels)
    commands = [
        [compiler, *kept, *flags, *unit.flags, TILES, "-c", str(unit.source)] for unit in units
    ]
    commands += [
        [compiler, *kept, *flags, f"-DFASTGAN_HARNESS_LEVELS(use)={uses}", "-c", str(source)]
        for source in (
            HERE / "kernel_harness.cpp",
            HERE / "convolution_harness.cpp",
            sources / "cpu" / "memory.cpp",
        )
    ]
    objects = [str(folder / f"{index}.o") for index in range(len(commands))]

    def compile_one(command: list[str], target: str) -> None:
        subprocess.run([*command, "-o", target], check=True, timeout=600)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, commands, objects))
    program = folder / "harness"
    subprocess.run([compiler, *flags, "-pthread", *objects, "-o", str(program)], check=True)
    return program


def usable_levels(extension: native.Extension) -> list[str]:
    """Two levels that cover all source: pairs and tiles where they can run, else the simplest."""
    if "avx512_bf16" in extension.module.levels():
        return ["avx512_bf16", "amx_bf16"]
    return ["portable"]


@pytest.fixture(scope="session")
def sanitized(extension: native.Extension, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    return build_harness(folder, usable_levels(extension), SANITIZERS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kernels_stay_inside_their_memory_and_are_right(sanitized: Path, seed: int) -> None:
    """500 drawn cases a level and dtype in all: what AMX computes is checked here alone."""
    done = subprocess.run(
        [str(sanitized), "250", str(seed)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
