"""Maps top-level folders into the package and compiles the native kernels where that is possible.

The kernels are optional. With torch and compilers at hand (`pip install --no-build-isolation`) they
are compiled into the wheel, or beside the sources for an editable install; otherwise, or if a
compiler fails, the package installs without them and builds them on first use.
FASTGAN_NATIVE=off leaves them out, FASTGAN_NATIVE=require makes a failure an error.
The CUDA kernels are compiled where torch is built with CUDA and nvcc is there (auto);
FASTGAN_BUILD_CUDA=on or off compiles them or leaves them out whatever torch is built with.
"""

import functools
import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def chosen(name, *allowed):
    """Return what an environment variable says, the first of `allowed` if it is not set."""
    value = os.environ.get(name, "").strip().lower() or allowed[0]
    if value not in allowed:
        raise SystemExit(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}")
    return value


MODE = chosen("FASTGAN_NATIVE", "auto", "off", "require")
CUDA = chosen("FASTGAN_BUILD_CUDA", "auto", "on", "off")


def go_without(kernels, reason):
    """Say that `kernels` are not compiled, or stop where they are required."""
    if MODE == "require":
        raise SystemExit(f"FASTGAN_NATIVE=require: {reason}")
    print(f"fastgan: installing without compiled {kernels} kernels: {reason}", file=sys.stderr)


@functools.cache
def compilations():
    """List what can be compiled here: name, folder in fastgan/_native, function."""
    if MODE == "off":
        return []
    sys.path.insert(0, str(ROOT))
    try:
        from fastgan import native_build, native_cuda_build
    except (ImportError, OSError) as error:  # OSError: a torch whose libraries cannot be loaded
        missing = getattr(error, "name", None)
        how = "pip install torch numpy, then pip install --no-build-isolation"
        go_without("native", f"no {missing} where the wheel is built ({how})" if missing else error)
        return []
    finally:
        sys.path.remove(str(ROOT))
    found = []
    reason = native_build.obstacle()
    if reason is None:
        found.append(("CPU", ".", native_build.compile_library))
    else:
        go_without("CPU", reason)
    if native_cuda_build.wanted_at_install(CUDA):
        reason = native_cuda_build.compiler_obstacle()
        if reason is None:
            found.append(("CUDA", "cuda", native_cuda_build.compile_library))
        else:
            go_without("CUDA", reason)
    return found


class BuildWithKernels(build_py):
    """Copies the Python files, then compiles the kernels next to them."""

    def run(self):
        super().run()
        package = ROOT / "fastgan" if self.editable_mode else Path(self.build_lib) / "fastgan"
        shutil.rmtree(package / "_native", ignore_errors=True)  # of an earlier build
        for kernels, name, compile_library in compilations():
            folder = package / "_native" / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                compile_library(folder)
            except RuntimeError as error:
                shutil.rmtree(folder)
                go_without(kernels, error)


class DistributionWithKernels(Distribution):
    """A wheel with a compiled library belongs to one platform and one Python."""

    def has_ext_modules(self):
        return bool(compilations())


SOURCES = [f"fastgan.csrc.{folder}" for folder in ("common", "cpu", "cuda")]

setup(
    packages=[
        *find_packages(include=["fastgan", "fastgan.*"]),
        "fastgan.kernels",
        "fastgan.kernels.tuning",
        "fastgan.csrc",
        *SOURCES,
    ],
    package_dir={"fastgan": "fastgan", "fastgan.kernels": "kernels", "fastgan.csrc": "csrc"},
    package_data={
        "fastgan.kernels.tuning": ["*.json"],
        **{folder: ["*.h", "*.cpp", "*.cu", "*.cuh"] for folder in SOURCES},
    },
    cmdclass={"build_py": BuildWithKernels},
    distclass=DistributionWithKernels,
)
