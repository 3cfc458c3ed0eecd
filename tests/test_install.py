"""What installing compiles and packs: by what torch and compilers are there, and by what is asked.

A program that pretends to compile stands for the compilers, so that a build takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from fastgan import native_build, native_cuda_build

pytest.importorskip("setuptools", "77")
pytestmark = pytest.mark.skipif(
    native_build.obstacle() is not None, reason=str(native_build.obstacle())
)

ROOT = Path(__file__).parents[1]
CPU_LIBRARY = f"fastgan/_native/{native_build.LIBRARY}"
CUDA_LIBRARY = f"fastgan/_native/cuda/{native_cuda_build.LIBRARY}"
#: A compiler of any language: says that it is nvcc, and writes what it is asked for.
PRETENDED = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release 12.8"; exit;; esac
while [ $# -gt 1 ]; do
  if [ "$1" = -o ]; then echo pretended > "$2"; fi
  shift
done
"""
FAILING = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release 12.8"; exit;; esac
echo "kernel.cu(3): error: no such intrinsic" >&2
exit 2
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree to build in."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("fastgan", "kernels", "csrc"):
        unwanted = shutil.ignore_patterns("_native", "__pycache__")
        shutil.copytree(ROOT / name, tree / name, ignore=unwanted)
    return tree


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def build(tree: Path, hook: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Call a hook of the build backend, as pip does, with pretended compilers."""
    compilers = {name: program(tree.parent, name, PRETENDED) for name in ("CXX", "CUDACXX")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTGAN")}
    return subprocess.run(
        [sys.executable, "-c", f"from setuptools import build_meta; build_meta.{hook}('out')"],
        cwd=tree,
        env=clean | compilers | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def built(tree: Path, pattern: str = "*.whl") -> Path:
    (found,) = (tree / "out").glob(pattern)
    return found


def contents(tree: Path) -> set[str]:
    with zipfile.ZipFile(built(tree)) as wheel:
        return set(wheel.namelist())


def own_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("fastgan: ")]


def data_files() -> set[str]:
    """What is not Python but is needed: sources to compile, tuning tables."""
    sources = {path for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    tables = set((ROOT / "kernels" / "tuning").glob("*.json"))
    assert len(sources) > 40
    assert len(tables) >= 5
    return {path.relative_to(ROOT).as_posix() for path in sources | tables}


@pytest.mark.parametrize(
    ("choice", "torch_cuda", "wanted"),
    [
        ("auto", None, False),
        ("auto", "13.0", True),
        ("on", None, True),
        ("on", "13.0", True),
        ("off", None, False),
        ("off", "13.0", False),
    ],
)
def test_cuda_kernels_are_compiled_where_they_can_be_used_or_are_asked_for(
    choice: str, torch_cuda: str | None, wanted: bool
) -> None:
    assert native_cuda_build.wanted_at_install(choice, torch_cuda) is wanted


def test_a_wheel_with_everything(tree: Path) -> None:
    done = build(tree, "build_wheel", FASTGAN_BUILD_CUDA="on")
    assert done.returncode == 0, done.stdout
    assert own_lines(done) == []
    assert "is absent from the `packages` configuration" not in done.stdout
    found = contents(tree)
    assert {CPU_LIBRARY, CUDA_LIBRARY} <= found
    assert {
        str(Path(name).parent / native_build.RECORD) for name in (CPU_LIBRARY, CUDA_LIBRARY)
    } <= found
    assert {f"fastgan/{name}" for name in data_files()} <= found
    assert not built(tree).name.endswith("-any.whl")
    # Unpacked, it is what the loader looks for.
    with zipfile.ZipFile(built(tree)) as wheel:
        wheel.extractall(tree.parent / "site")
    folder = (tree.parent / "site" / CUDA_LIBRARY).parent
    sources = native_cuda_build.source_folder()
    assert sources is not None
    key = native_cuda_build.build_key(sources)
    assert native_build.check_library(folder, key, native_cuda_build.LIBRARY) is None


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_no_cuda_kernels_where_torch_is_without_cuda_or_none_are_wanted(
    tree: Path, choice: str
) -> None:
    if choice == "auto" and torch.version.cuda is not None:
        pytest.skip("this torch is built with CUDA")
    build(tree, "build_wheel", FASTGAN_BUILD_CUDA="on")
    assert CUDA_LIBRARY in contents(tree)
    done = build(tree, "build_wheel", FASTGAN_BUILD_CUDA=choice)  # over what that one left
    assert done.returncode == 0, done.stdout
    assert own_lines(done) == []
    assert CPU_LIBRARY in contents(tree)
    assert not {name for name in contents(tree) if name.startswith("fastgan/_native/cuda")}


def test_an_nvcc_that_fails_is_one_line_and_a_package_without(tree: Path) -> None:
    nvcc = program(tree.parent, "nvcc", FAILING)
    done = build(tree, "build_wheel", FASTGAN_BUILD_CUDA="on", CUDACXX=nvcc)
    assert done.returncode == 0, done.stdout
    (line,) = own_lines(done)
    assert line.startswith("fastgan: installing without compiled CUDA kernels: nvcc failed (2): ")
    assert "no such intrinsic" in line
    assert CPU_LIBRARY in contents(tree)
    assert not {name for name in contents(tree) if name.startswith("fastgan/_native/cuda")}


def test_no_nvcc_says_what_to_install(tree: Path) -> None:
    done = build(tree, "build_wheel", FASTGAN_BUILD_CUDA="on", CUDACXX="no-such-program")
    assert done.returncode == 0, done.stdout
    (line,) = own_lines(done)
    assert "CUDACXX='no-such-program' is not a program; install the CUDA toolkit" in line


def test_required_kernels_that_fail_stop_the_installation(tree: Path) -> None:
    nvcc = program(tree.parent, "nvcc", FAILING)
    settings = {"FASTGAN_NATIVE": "require", "FASTGAN_BUILD_CUDA": "on", "CUDACXX": nvcc}
    done = build(tree, "build_wheel", **settings)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("FASTGAN_NATIVE=require: nvcc failed (2): ")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("FASTGAN_BUILD_CUDA", "auto, on, off"), ("FASTGAN_NATIVE", "auto, off, require")],
)
def test_an_unknown_choice_names_what_is_allowed(tree: Path, name: str, allowed: str) -> None:
    done = build(tree, "build_wheel", **{name: "perhaps"})
    assert done.returncode == 1
    assert f"{name}='perhaps' is not known; allowed: {allowed}" in done.stdout


def test_a_source_archive_carries_what_a_build_needs(tree: Path) -> None:
    done = build(tree, "build_sdist", FASTGAN_NATIVE="off")
    assert done.returncode == 0, done.stdout
    with tarfile.open(built(tree, "*.tar.gz")) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "kernels/__init__.py"} | data_files() <= found


def test_an_editable_installation_finds_its_tuning_tables(tree: Path) -> None:
    done = build(tree, "build_editable", FASTGAN_BUILD_CUDA="on")
    assert done.returncode == 0, done.stdout
    assert "is absent from the `packages` configuration" not in done.stdout
    assert (tree / CUDA_LIBRARY).is_file()
    site = tree.parent / "site"
    with zipfile.ZipFile(built(tree)) as wheel:
        wheel.extractall(site)
    # Another editable fastgan may be installed here: its finder steps aside.
    code = f"""
import site, sys
ours = lambda name: name.startswith("__editable___fastgan")
sys.meta_path[:] = [one for one in sys.meta_path if not ours(getattr(one, "__module__", ""))]
for name in [*filter(ours, sys.modules)]:
    del sys.modules[name]
site.addsitedir({str(site)!r})
from fastgan.kernels.conv_tuning import tuning_table
print(sys.modules["fastgan.kernels"].__file__, len(tuning_table("sm_90")) > 0)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [str(tree / "kernels" / "__init__.py"), "True"]
