"""`fastgan doctor`: what this machine has, what is missing, and whether fastgan works here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
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


def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="Compile the native CPU kernels first if need be.")
    ] = False,
) -> None:
    """Say what is found, what is missing and how to get it, and check in a minute that it works."""
    if build:
        from fastgan import native

        native.build()
    for name, value in _findings():
        typer.echo(f"{name:<13} {value}")
    typer.echo(f"{'self-check':<13} {_self_check()}")


def _findings() -> Iterator[tuple[str, str]]:
    import torch

    from fastgan.data.cache import default_cache_dir

    yield "fastgan", importlib.metadata.version("fastgan")
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    yield "triton", _triton()
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        yield f"cuda:{index}", f"{facts.name}, sm_{facts.major}{facts.minor}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        yield "gpu", "none that this torch can use: training runs on the CPU"
    yield "compiler", _first_line(os.environ.get("CXX", "c++"), "g++", "clang++")
    yield "nvcc", _first_line("nvcc", wanted="release")
    yield from _native_kernels()
    yield "image cache", str(default_cache_dir())
    for extra, (module, purpose) in _EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        missing = f"not installed ({purpose}): pip install 'fastgan[{extra}]'"
        yield extra, f"installed ({purpose})" if found else missing


def _native_kernels() -> Iterator[tuple[str, str]]:
    from fastgan import native, native_cuda

    status = native.status()
    if status.usable:
        yield "native", f"{status.level} kernels, {status.origin}, in {status.folder}"
    else:
        yield "native", f"not in use: {status.reason}"
    yield "native cache", str(status.cache)
    cuda = native_cuda.status()
    yield "native CUDA", f"in {cuda.folder}" if cuda.usable else f"not in use: {cuda.reason}"


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: torch's own operators are used (pip install triton, on Linux)"


def _first_line(*commands: str, wanted: str = "") -> str:
    """What the first of the commands that exists says of its version."""
    for command in commands:
        path = shutil.which(command)
        if path is not None:
            said = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=30, check=False
            )
            lines = [line for line in said.stdout.splitlines() if wanted in line]
            return f"{path}: {lines[0].strip() if lines else 'says nothing of its version'}"
    return f"not found ({', '.join(commands)})"


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
