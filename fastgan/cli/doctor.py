"""`fastgan doctor`: what this machine has, what is missing, and whether fastgan works here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

# Extra -> the module that tells whether it is installed, and what it is for.
_EXTRAS = {
    "demo": ("sklearn", "the data set 'digits'"),
    "plot": ("matplotlib", "loss curves"),
    "log": ("tensorboard", "TensorBoard"),
    "hub": ("datasets", "Hugging Face data sets"),
    "export": ("onnx", "ONNX export"),
}

_BUILT = {
    "installed": "compiled at install",
    "cache": "compiled on first use",
    "built": "compiled just now",
}


def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Compile the native kernels first if need be.")
    ] = False,
) -> None:
    """Say what is found, what is missing and how to get it, and check in a minute that it works."""
    if build:
        from fastgan import native, native_cuda

        native.build()
        if native_cuda.obstacle() is None:
            native_cuda.build()
    for name, value in _findings():
        typer.echo(f"{name:<13} {value}")
    typer.echo(f"{'self-check':<13} {_self_check()}")


def _findings() -> Iterator[tuple[str, str]]:
    import torch

    from fastgan import native_build, native_cuda_build
    from fastgan.data.cache import default_cache_dir

    yield "fastgan", importlib.metadata.version("fastgan")
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    cuda = f"CUDA {torch.version.cuda}, " if torch.version.cuda else ""
    yield "torch", f"{torch.__version__}, {cuda}{torch.get_num_threads()} threads"
    yield "triton", _triton()
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        yield f"cuda:{index}", f"{facts.name}, sm_{facts.major}{facts.minor}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        yield "gpu", "none that this torch can use: training runs on the CPU"
    yield "compiler", _version(native_build.find_compiler()) or native_build.missing_compiler()
    yield (
        "nvcc",
        _version(native_cuda_build.find_nvcc(), "release")
        or "not found: only compiling the CUDA kernels needs it",
    )
    yield from _native_kernels()
    yield "image cache", _cache(default_cache_dir())
    for extra, (module, purpose) in _EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        missing = f"not installed ({purpose}): pip install 'fastgan[{extra}]'"
        yield extra, f"installed ({purpose})" if found else missing


def _native_kernels() -> Iterator[tuple[str, str]]:
    from fastgan import native, native_cuda

    status = native.status()
    if status.usable:
        built = f"{_BUILT[str(status.origin)]} by {status.built_by}"
        yield "native", f"{status.level} kernels, {built}, in {status.folder}"
    else:
        yield "native", f"not in use: {status.reason}"
    for level in status.compiled:
        usable = "usable" if level.usable else "not on this processor"
        state = "in use" if level.name == status.level else usable
        tiles = (f"{rows}x{n} {dtype}" for dtype, (rows, n) in level.register_tiles.items())
        vectors = f"{level.vector_bits}-bit vectors"
        yield f"  {level.name}", f"{state}: {vectors}, register tiles {', '.join(tiles)}"
    if status.features:
        has = [name for name, present in status.features.items() if present]
        lacks = [name for name, present in status.features.items() if not present]
        yield "processor", ", ".join(has) + (f"; without {', '.join(lacks)}" if lacks else "")
    yield "native cache", _cache(status.cache)
    yield "freed memory", _freed_memory()
    cuda = native_cuda.status()
    yield "native CUDA", f"in {cuda.folder}" if cuda.usable else f"not in use: {cuda.reason}"
    if cuda.usable:
        yield "  kernels", _cuda_kernels()


def _freed_memory() -> str:
    """What becomes of the memory that a training step on the CPU frees."""
    from fastgan.memory import arena, keep_freed_memory

    kept = keep_freed_memory()
    state = arena()
    if state is not None:
        reserved = state["reserved"] / 2**30
        return f"kept for the next step: tensors in an arena (of {reserved:.0f} GiB at most)"
    if kept:
        return "kept for the next step in the C library's heap: a higher peak than in an arena"
    return "given back to the system: each step takes fresh pages"


def _cuda_kernels() -> str:
    """What the CUDA kernels use on the current device, at most."""
    from fastgan import native_cuda

    try:
        found = native_cuda.kernel_attributes()
    except RuntimeError as error:
        return str(error)
    return (
        f"{len(found)}, each at most {max(one.registers for one in found)} registers and"
        f" {max(one.local_bytes for one in found)} bytes of local memory a thread,"
        f" {max(one.static_shared_bytes for one in found)} bytes of static shared memory a block;"
        f" blocks of {min(one.most_threads for one in found)} threads and more"
    )


def _cache(folder: Path) -> str:
    """A cache's folder, and what to do if nothing can be written there."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return str(folder)
    return f"{folder} cannot be written; set FASTGAN_CACHE to another folder"


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: torch's own operators are used (pip install triton, on Linux)"


def _version(compiler: str | None, wanted: str = "") -> str | None:
    """A compiler's path and the first line with `wanted` that it says of its version."""
    if compiler is None:
        return None
    try:
        said = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=30, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler}: {error}"
    lines = [line for line in said.splitlines() if wanted in line]
    return f"{compiler}: {lines[0].strip() if lines else 'says nothing of its version'}"


def _self_check() -> str:
    """Train a tiny network with a stop and a resume, and without, and compare the weights."""
    import numpy as np
    import torch
    from rich.console import Console

    from fastgan.data import open_images
    from fastgan.errors import RunError
    from fastgan.training import TrainConfig, Trainer

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fastgan-doctor-") as name:
        folder, quiet = Path(name), Console(quiet=True)
        pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 16, 16, 3), np.uint8)
        np.save(folder / "noise.npy", pixels)
        data = open_images(folder / "noise.npy", 16, cache_dir=folder / "cache", progress=False)
        config = TrainConfig(
            image_size=(16, 16), batch_size=16, generator_width=8, discriminator_width=8, steps=2
        )
        stopped, whole = folder / "stopped", folder / "whole"
        Trainer(config, data, stopped, quiet).fit()
        resumed = Trainer.resume(stopped, data, quiet, steps=4)
        resumed.fit()
        straight = Trainer(config.replace(steps=4), data, whole, quiet)
        straight.fit()
        ours, theirs = resumed.state.tensors(), straight.state.tensors()
        for file, tensors in ours.items():
            for key, tensor in tensors.items():
                if not torch.equal(tensor, theirs[file][key]):
                    raise RunError(
                        f"the self-check failed: a resumed run differs in {file} {key}; please"
                        " report it with this table"
                    )
        device = straight.device
    return (
        f"trained, saved and resumed to the bit on {device} in {time.perf_counter() - began:.1f} s"
    )
