"""The command line: `python -m bench` works, teaches, and errs in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bench
from bench.data import run_data
from bench.results import OK, RESULTS, ROOT, read
from fastgan.errors import ConfigError

COMMANDS = (
    "ops",
    "step",
    "memory",
    "data",
    "overhead",
    "resources",
    "gpu-check",
    "report",
    "compare",
)


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(bench.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert len(_run(command, "--help")) > 200


@pytest.mark.parametrize("where", [(), ("--isolate",)], ids=["one process", "isolated"])
def test_step_writes_a_row_for_every_provider(tmp_path: Path, where: tuple[str, ...]) -> None:
    out = tmp_path / "out.json"
    _run(
        *("step", "--device", "cpu", "--image-size", "16", "--batch-size", "2"),
        *("--against", "plain script", "--against", "best eager", "--precision", "fp32"),
        *("--seconds", "0.1", "--json", str(out), *where),
    )
    results = read(out)
    assert [row.provider for row in results.rows] == ["fastgan", "plain script", "best eager"]
    assert {row.status for row in results.rows} == {OK}
    assert all(row.ratio and row.floor_share and row.samples >= 5 for row in results.rows)
    environment = results.environment
    assert environment.threads == torch.get_num_threads()
    assert environment.command.startswith("python -m bench")
    assert str(tmp_path) not in out.read_text()


def test_step_measures_the_switches_and_the_layers_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    _run(
        *("step", "--device", "cpu", "--image-size", "16", "--batch-size", "2", "--switches"),
        *("--against", "best eager", "--precision", "bf16", "--seconds", "0.1"),
        *("--json", str(out)),
    )
    rows = {row.provider: row for row in read(out).rows}
    assert {row.status for row in rows.values()} == {OK}
    assert list(rows) == [
        "fastgan",
        "fastgan, no switch",
        "fastgan, one D pass",
        "fastgan, weights cast once",
        "fastgan layers, plain loop",
        "fastgan layers, best loop",
        "best eager",
    ]
    assert {row.baseline for row in rows.values()} == {"best eager"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--against", "nonsense"), "best eager"),
        (("step", "--precision", "fp8"), "fp32 or bf16"),
        (("step", "--device", "tpu"), "tpu"),
        (("ops", "--input", "2x3"), "belong together"),
        (("ops", "--device", "cpu", "--operator", "nonsense"), "no case is left"),
        (("ops", "--direction", "sideways"), "forward"),
        (("ops", "--image-size", "18"), "multiple of 4"),
        (("step", "--image-size", "18"), "multiple of 4"),
        (
            ("ops", "--device", "cpu", "--module", "torch.nn:Linear(2, 3)", "--input", "1x3"),
            r"does not take --input \[1, 3\]",
        ),
        (("data", "--images", "3"), "less than one batch"),
        (("report", "--folder", "missing"), "not a folder"),
        (("gpu-check", "--dry-run", "--only", "nonsense"), "--only 'nonsense'"),
        (("compare", "missing.json", "missing.json"), "cannot be read"),
        (("gpu-check", "--device", "cpu"), "--dry-run"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _run(*arguments)


@pytest.mark.parametrize("suite", ["step", "ops", "memory", "data"])
def test_a_batch_has_at_least_one_image(suite: str) -> None:
    result = CliRunner().invoke(bench.app, [suite, "--batch-size", "0"])
    assert result.exit_code == 2
    assert "--batch-size" in result.output


def test_compare_refuses_two_suites() -> None:
    step, ops = (next(RESULTS.glob(f"*-{suite}.json")) for suite in ("step", "ops"))
    with pytest.raises(ConfigError, match=r"results of step .* of ops"):
        _run("compare", str(step), str(ops))


def test_the_name_of_a_result_file_survives_the_help() -> None:
    assert "DEVICE-SUITE.json" in " ".join(_run("step", "--help").split())


def test_python_dash_m_bench_prints_the_sentence_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "compare", "missing.json", "missing.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: result file missing.json")
    assert "Traceback" not in done.stderr


def test_data_pipelines_give_the_same_pixels() -> None:
    results = run_data(
        torch.device("cpu"),
        image_size=16,
        batch_size=4,
        seconds=0.0,
        images=8,
        workers=0,
        tiny=True,
        report=lambda _: None,
    )
    assert {row.status for row in results.rows} == {OK}, [row.message for row in results.rows]
    assert all(row.extra["images_per_second"] > 0 for row in results.rows)
