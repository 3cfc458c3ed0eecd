"""nvcc compiles every kernel for every chip, without a GPU, and each keeps to its budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from simt_library import COMPILER, FLAGS, SHIM, SOURCES

from fastgan import native_build, native_cuda, native_cuda_build
from fastgan.errors import NativeBuildError

needs_nvcc = pytest.mark.skipif(
    native_cuda_build.compiler_obstacle() is not None,
    reason=str(native_cuda_build.compiler_obstacle()),
)
#: Kernels of a family on one chip: three types, and for some two access widths and channel counts.
KERNELS = {
    "adversarial_loss": 2 * 3,
    "batch_norm_backward": 3 * 6,
    "batch_norm_forward": 3 * 6,
    "bias_act": 2 * 6 + 1,
    "image_dgrad": 3 * 6,
    "image_fprop": 3,
    "image_wgrad": 2 * 3,
    "pack_weights": 3,
}


@pytest.fixture(scope="module")
def table() -> list[native_cuda_build.KernelResources]:
    return native_cuda_build.resources()


@needs_nvcc
@pytest.mark.parametrize("architecture", native_cuda_build.ARCHITECTURES)
def test_every_kernel_keeps_to_its_budget_and_spills_nothing(architecture: str, table) -> None:
    rows = [row for row in table if row.architecture == architecture]
    found = {
        family: sum(row.family == family for row in rows) for family in native_cuda_build.FAMILIES
    }
    assert found == KERNELS
    over = {f"{row.family} {row.kernel}": native_cuda_build.violations(row) for row in rows}
    assert not {name: reasons for name, reasons in over.items() if reasons}


#: Kernels that read full packs, by family: for three types, so many that write packs and that
#: only reduce.
WIDE_KERNELS = {"bias_act": (2, 0), "batch_norm_forward": (2, 1), "batch_norm_backward": (2, 1)}


@needs_nvcc
@pytest.mark.parametrize("family", WIDE_KERNELS)
def test_whole_rows_are_moved_16_bytes_at_a_time(family: str, tmp_path: Path) -> None:
    source = native_cuda_build.source_folder() / f"{family}.cu"
    target = tmp_path / "kernel.ptx"
    command = [native_cuda_build.find_nvcc(), *native_cuda_build.FLAGS, "-ptx", "-arch=compute_80"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    entries = target.read_text().split(".entry ")[1:]
    wide = [text for text in entries if "ld.global.v4" in text]
    writers = [text for text in wide if "st.global.wb.v4" in text]
    assert (len(writers), len(wide) - len(writers)) == tuple(3 * n for n in WIDE_KERNELS[family])
    assert all(text.count("ld.global.v4") == 4 for text in wide)  # all under way together
    assert not any("ld.global.u16" in text or "st.global.u16" in text for text in wide)


def test_sources_and_families_agree() -> None:
    files = {path.stem for path in native_cuda_build.source_folder().glob("*.cu")}
    assert files == set(native_cuda_build.FAMILIES)


def test_the_budget_is_told() -> None:
    row = native_cuda_build.KernelResources("sm_80", "bias_act", "kernel<float>", 200, 8, 16)
    assert len(native_cuda_build.violations(row)) == 3


def test_the_key_changes_with_a_source(tmp_path: Path) -> None:
    for name in ("cuda", "common"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.h").write_text("1")
    first = native_cuda_build.build_key(tmp_path / "cuda")
    (tmp_path / "cuda" / "__pycache__").mkdir()
    assert native_cuda_build.build_key(tmp_path / "cuda") == first
    (tmp_path / "common" / "kernel.h").write_text("2")
    assert native_cuda_build.build_key(tmp_path / "cuda") != first


def test_without_nvcc_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "no-such-compiler")
    assert "CUDA toolkit" in native_cuda_build.compiler_obstacle()
    with pytest.raises(NativeBuildError, match="is not a program; install the CUDA toolkit"):
        native_cuda_build.resources()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_nothing_is_built_and_the_reason_is_told() -> None:
    assert "CUDA" in native_cuda.usable()
    assert native_cuda.folder() is None
    with pytest.raises(RuntimeError, match="the CUDA kernels are not loaded"):
        native_cuda.kernel_attributes()
    with pytest.raises(NativeBuildError, match="CUDA"):
        native_cuda.build()


def fake_nvcc(folder: Path, release: str) -> str:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\necho '{release}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("release", "torch_cuda", "said"),
    [
        ("release 12.8, V12.8.1", "12.8", None),
        ("release 12.9, V12.9.0", "12.8", None),
        ("release 12.9, V12.9.0", "13.0", None),  # an older CUDA's programs run on a newer driver
        ("release 13.0, V13.0.1", None, None),
        ("release 13.0, V13.0.1", "12.8", "of CUDA 13.0, this PyTorch of CUDA 12.8; set CUDACXX"),
        ("release 12.4, V12.4.1", "12.8", "of CUDA 12.4; set CUDACXX to one of 12.8 or newer"),
        ("an error", "12.8", "does not say its version; set CUDACXX"),
    ],
)
def test_nvcc_must_fit_the_kernels_and_torch(
    release: str,
    torch_cuda: str | None,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDACXX", fake_nvcc(tmp_path, release))
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    obstacle = native_cuda_build.compiler_obstacle()
    assert obstacle is None if said is None else said in str(obstacle)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as it ships."""
    return native_cuda_build.compile_library(tmp_path_factory.mktemp("library"))


def loaded(library: Path, code: str) -> str:
    """What `code` prints in a process that has loaded the library; `sys.argv[1]` is its path."""
    command = [sys.executable, "-c", "import ctypes, sys, torch\n"]
    if torch.version.cuda is None:  # something must answer for libtorch_cuda
        source, stream = SHIM / "torch_stream.cpp", library.with_name("torch_stream.so")
        subprocess.run(
            [native_build.find_compiler(), "-shared", "-fPIC", str(source), "-o", str(stream)],
            check=True,
        )
        command[-1] += f"ctypes.CDLL({str(stream)!r}, ctypes.RTLD_GLOBAL)\n"
    command[-1] += f"torch.ops.load_library(sys.argv[1])\n{code}"
    done = subprocess.run([*command, str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_nvcc
@pytest.mark.slow
def test_the_library_is_compiled_for_every_chip_and_loads(library: Path) -> None:
    left = {path.name for path in library.parent.iterdir() if path.suffix != ".so"}
    assert left == {native_build.RECORD}
    key = native_cuda_build.build_key(native_cuda_build.source_folder())
    assert native_build.check_library(library.parent, key, library.name) is None
    operators = ("batch_norm_forward", "bias_act_backward", "image_wgrad", "pack_weights")
    for operator in operators:
        assert operator in loaded(library, f"print(torch.ops.fastgan_cuda.{operator}.default)")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    binaries = subprocess.run(
        [str(tool), "--list-elf", str(library)], capture_output=True, text=True, check=True
    ).stdout
    for chip in native_cuda_build.ARCHITECTURES:
        assert binaries.count(f".{chip}.cubin") == len(native_cuda_build.FAMILIES)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_library_lists_its_kernels_and_says_why_it_knows_no_more(library: Path) -> None:
    count = "print(ctypes.CDLL(sys.argv[1]).fastgan_cuda_kernel_count())"
    assert int(loaded(library, count)) == sum(KERNELS.values())
    ask = """
from fastgan import native_cuda
try:
    native_cuda.attributes_of(sys.argv[1])
except RuntimeError as error:
    print(error)
"""
    assert "the CUDA runtime says nothing of its kernels: " in loaded(library, ask)


def test_the_runtime_is_asked_about_every_kernel(
    shim_objects: dict[str, Path], tmp_path: Path
) -> None:
    library = tmp_path / "attributes.so"
    command = [str(COMPILER), *FLAGS, f"-I{SHIM}", str(SOURCES / "cuda" / "attributes.cpp")]
    command += [str(shim_objects[name]) for name in (*native_cuda_build.FAMILIES, "simt")]
    subprocess.run([*command, "-shared", "-o", str(library)], check=True)
    found = native_cuda.attributes_of(library)
    assert len(found) == sum(KERNELS.values())
    told = native_cuda.KernelAttributes("example_kernel<BFloat16, 8>", 40, 16, 8, 512)
    assert set(found) == {told}  # the shim's answer


@pytest.mark.gpu
def test_the_device_has_what_the_kernels_use() -> None:
    assert native_cuda.usable() is None
    found = native_cuda.kernel_attributes()
    assert len({one.kernel for one in found}) == len(found) == sum(KERNELS.values())
    for one in found:
        assert one.local_bytes == one.static_shared_bytes == 0, one
        assert 0 < one.registers <= native_cuda_build.REGISTERS_LIMIT, one
        assert one.most_threads >= 128, one
