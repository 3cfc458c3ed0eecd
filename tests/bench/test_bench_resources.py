"""`bench resources` lists the CUDA kernels beside Triton's, and holds them to their budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import bench
from bench import resources
from bench.results import FAILED, OK, read
from fastgan import native_cuda_build

needs_nvcc = pytest.mark.skipif(
    native_cuda_build.toolkit_obstacle() is not None,
    reason=str(native_cuda_build.toolkit_obstacle()),
)
TRITON = {
    "architecture": "sm_90",
    "name": "fprop[64x64]",
    "of": 1,
    "num_warps": 4,
    "registers": 64,
    "shared_memory": 1024,
    "spills": 0,
    "matrix_instructions": {"wgmma": 4},
    "global_load": 16,
    "bulk_copies": 0,
    "violations": [],
}
#: A family of three kernels: one that keeps to its budget, two that do not.
SOURCE = """
__global__ void plain_kernel(float* values) { values[threadIdx.x] *= 2.0f; }
__global__ void sharing_kernel(float* values) {
  __shared__ float row[64];
  row[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = row[63 - threadIdx.x];
}
__global__ void spilling_kernel(float* values, int at) {
  float own[64];  // indexed by what only the launch knows: it lies on the stack
  for (int i = 0; i < 64; ++i) own[i] = values[i];
  own[at] = 1.0f;
  for (int i = 0; i < 64; ++i) values[i] = own[i] + own[(i + at) % 64];
}
"""


@pytest.fixture
def one_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source file of the CUDA kernels."""
    source = tmp_path / "example.cu"
    source.write_text(SOURCE)
    monkeypatch.setattr(native_cuda_build, "source_folder", lambda: tmp_path)
    monkeypatch.setattr(native_cuda_build, "FAMILIES", ("example",))
    monkeypatch.setattr(native_cuda_build, "SHARED_LIMITS", {"example": 128})
    return source


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(resources, "measure", lambda *_: [dict(TRITON)])
    command = ["resources", "--architecture", "sm_90", *arguments]
    return CliRunner().invoke(bench.app, command, catch_exceptions=False)


@needs_nvcc
def test_every_architecture_that_nvcc_serves_is_listed(one_family: Path) -> None:
    records = resources.measure_cuda(["sm_100", "gfx942", "sm_80", "sm_90"], jobs=2)
    assert [record["architecture"] for record in records[::3]] == ["sm_100", "sm_80", "sm_90"]
    assert len(records) == 9
    names = {record["name"] for record in records}
    kernels = ("plain", "sharing", "spilling")
    assert names == {f"example.cu {kernel}_kernel[float]" for kernel in kernels}


@needs_nvcc
def test_a_kernel_beyond_its_budget_is_red_and_ends_with_status_1(
    one_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(monkeypatch, "--json", str(tmp_path / "out.json"))
    assert result.exit_code == 1
    assert "example.cu sharing_kernel[float]: 256 bytes of shared memory" in result.output
    assert "4 specializations compiled, 2 break their budget" in result.output
    rows = {row.case: row for row in read(tmp_path / "out.json").rows}
    assert len(rows) == 4
    plain, sharing, spilling = (
        rows[f"example.cu {name}_kernel[float]"] for name in ("plain", "sharing", "spilling")
    )
    assert (plain.status, plain.message) == (OK, "")
    assert plain.extra["registers"] > 0
    assert plain.extra["shared_memory"] == 128  # what its launcher may ask for
    assert plain.extra["spills"] == 0
    assert (sharing.status, sharing.extra["shared_memory"]) == (FAILED, 128 + 256)
    assert (spilling.status, spilling.message) == (FAILED, "256 bytes of spills")


@needs_nvcc
def test_a_source_that_does_not_compile_breaks_its_budget(
    one_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_family.write_text("__global__ void broken_kernel() { no_such_function(); }")
    result = run(monkeypatch)
    assert result.exit_code == 1
    assert "sm_90 example.cu: does not compile" in result.output
    assert "no_such_function" in result.output


@needs_nvcc
def test_a_source_without_kernels_is_not_passed_over(one_family: Path) -> None:
    one_family.write_text("int nothing;")
    (record,) = resources.measure_cuda(["sm_80"])
    assert record["violations"] == ["ptxas names no kernel"]


def test_without_nvcc_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "no-such-program")
    result = run(monkeypatch)
    assert result.exit_code == 0, result.output
    assert "fprop" in result.output
    assert "1 specializations compiled, 0 break their budget" in result.output
    assert "without the CUDA kernels: CUDACXX='no-such-program' is not a program" in result.output
