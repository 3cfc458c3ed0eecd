"""Maps top-level folders into the package and compiles the native kernels where that is possible.

The kernels are optional. With torch and a C++ compiler at hand (`pip install --no-build-isolation`)
they are compiled into the wheel, or beside the sources for an editable install; otherwise, or if
the compiler fails, the package installs without them and builds them on first use.
FASTGAN_NATIVE=off leaves them out, FASTGAN_NATIVE=require makes a failure an error.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("FASTGAN_NATIVE", "").strip().lower() or "auto"


def native_build():
    """Return fastgan.native_build if the kernels can be compiled here, else None."""
    if MODE == "off":
        return None
    sys.path.insert(0, str(ROOT))
    try:
        from fastgan import native_build as module
    except ImportError as error:
        reason = f"{error.name or error} is not installed where the wheel is built"
    else:
        reason = module.obstacle()
        if reason is None:
            return module
    finally:
        sys.path.remove(str(ROOT))
    if MODE == "require":
        raise SystemExit(f"FASTGAN_NATIVE=require: {reason}")
    print(f"fastgan: installing without compiled kernels: {reason}", file=sys.stderr)
    return None


class BuildWithKernels(build_py):
    """Copies the Python files, then compiles the kernels next to them."""

    def run(self):
        super().run()
        build = native_build()
        if build is None:
            return
        package = ROOT / "fastgan" if self.editable_mode else Path(self.build_lib) / "fastgan"
        folder = package / "_native"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            build.compile_library(folder)
        except RuntimeError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if MODE == "require":
                raise SystemExit(f"FASTGAN_NATIVE=require: {error}") from error
            print(f"fastgan: installing without compiled kernels: {error}", file=sys.stderr)


class DistributionWithKernels(Distribution):
    """A wheel with a compiled library belongs to one platform and one Python."""

    def has_ext_modules(self):
        return native_build() is not None


SOURCES = [f"fastgan.csrc.{folder}" for folder in ("common", "cpu", "cuda")]

setup(
    packages=[
        *find_packages(include=["fastgan", "fastgan.*"]),
        "fastgan.kernels",
        "fastgan.csrc",
        *SOURCES,
    ],
    package_dir={"fastgan": "fastgan", "fastgan.kernels": "kernels", "fastgan.csrc": "csrc"},
    package_data={
        "fastgan.kernels": ["tuning/*.json"],
        **{folder: ["*.h", "*.cpp", "*.cu", "*.cuh"] for folder in SOURCES},
    },
    cmdclass={"build_py": BuildWithKernels},
    distclass=DistributionWithKernels,
)
