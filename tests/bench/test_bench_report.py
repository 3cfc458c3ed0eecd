"""Results on disk, README's tables, plots and the comparison of two runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bench.compare import CHANGED, FASTER, ONLY_A, ONLY_B, SAME, SLOWER, changes_table, compare
from bench.plots import draw_all, plot_name, plots_of
from bench.report import NOTHING, render, write_readme
from bench.results import (
    ERROR,
    FAILED,
    RESULTS,
    ROOT,
    Results,
    Row,
    capture_environment,
    read,
    read_all,
)
from bench.tables import format_value, rows_table, three_digits
from fastgan.errors import ConfigError

CEILINGS = {
    "copy_bytes_per_second": 3e10,
    "matmul_float32_flops_per_second": 2e11,
    "matmul_bfloat16_flops_per_second": 9e11,
}


def _row(**changes: object) -> Row:
    row = Row(
        "conv2d D 64→128 @32²",
        "fastgan",
        direction="forward+backward",
        shape="batch 64: 64x32x32 → 128x16x16 k4 s2 p1",
        dtype="bfloat16",
        median=1e-3,
        spread=1e-4,
        samples=10,
        ratio=1.5,
        ratio_spread=0.1,
        baseline="eager",
        flops=1e9,
        bytes=1e7,
        floor=5e-4,
        floor_share=0.5,
        error=1e-3,
        tolerance=1e-2,
    )
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def _results() -> Results:
    results = Results("ops", capture_environment(torch.device("cpu"), 0), dict(CEILINGS))
    step = {"case": "DCGAN step 64×64", "direction": "step", "extra": {"images_per_second": 640.0}}
    results.rows = [
        _row(),
        _row(provider="eager", ratio=1.0),
        _row(direction="forward", median=5e-4),
        _row(direction="forward", provider="eager", ratio=1.0),
        _row(case="bias_act x", status=FAILED, median=None, ratio=None, error=None),
        _row(**step, shape="batch 64", median=0.1),
        _row(**step, shape="batch 64", median=0.2, provider="best eager", ratio=1.0),
        _row(**step, shape="batch 128", median=0.2),
        _row(**step, shape="batch 128", median=0.4, provider="best eager", ratio=1.0),
        _row(**(step | {"case": "DCGAN step 64×64, peak"}), shape="batch 64", unit="B", median=1e8),
        _row(case="conv2d, one call", shape="batch 2", median=2e-5, ratio=0.8),
    ]
    return results


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = _results()
    path = results.write(tmp_path / "a.json")
    assert read(path) == results
    assert json.loads(path.read_text())["environment"]["versions"]["torch"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_foreign_file_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"foreign\.json"):
        read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "missing.json")


def test_readme_says_what_the_committed_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = read_all(RESULTS) if RESULTS.is_dir() else []
    if results:
        assert "<!-- bench:begin " in text
    assert render(text, results) == text, "run `python -m bench report`"


def test_report_is_idempotent_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- bench:begin tables -->\nold\n<!-- bench:end tables -->\nafter\n"
    )
    assert write_readme(readme, [_results()])
    first = readme.read_text()
    assert not write_readme(readme, [_results()])
    assert first.startswith("before\n<!-- bench:begin tables -->\n")
    assert first.endswith("<!-- bench:end tables -->\nafter\n")
    assert "old" not in first
    environment = _results().environment
    for said in (environment.device, environment.versions["torch"], environment.date[:10]):
        assert said in first
    assert "| 64×64, batch 64 | bfloat16 | **fastgan** | 100 ms" in first
    assert "| bias_act | 64 | bfloat16 | forward+backward | 1, 1 failed |" in first


def test_blocks_without_results_say_so_and_wrong_blocks_are_refused() -> None:
    text = "<!-- bench:begin memory -->\n<!-- bench:end memory -->"
    only_steps = _results()
    only_steps.rows = [row for row in only_steps.rows if row.unit == "s"]
    assert NOTHING in render(text, [only_steps])
    assert render(text, []) == text
    with pytest.raises(ConfigError, match="nonsense"):
        render(text.replace("memory", "nonsense"), [])
    with pytest.raises(ConfigError, match="bench:end memory"):
        render("<!-- bench:begin memory -->\n", [])


def test_plots_are_those_that_readme_links(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = _results()
    drawn = draw_all(results, tmp_path)
    assert [path.name for path in drawn] == [plot_name(results, name) for name in plots_of(results)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots_of(results) == ["steps", "sweep", "ratios", "roofline"]


def test_compare_shows_what_moved_beyond_the_spread() -> None:
    a, b = _results(), _results()
    a.rows = [
        _row(provider="faster"),
        _row(provider="slower"),
        _row(provider="noise"),
        _row(provider="broken"),
        _row(provider="gone"),
        _row(provider="data", unit="images/s", median=100.0, spread=1.0),
    ]
    b.rows = [
        _row(provider="faster", median=5e-4),
        _row(provider="slower", median=2e-3),
        _row(provider="noise", median=1.09e-3),
        _row(provider="broken", status=ERROR, median=None),
        _row(provider="new"),
        _row(provider="data", unit="images/s", median=200.0, spread=1.0),
    ]
    changes = compare(a, b)
    assert {change.row.provider: change.verdict for change in changes} == {
        "faster": FASTER,
        "slower": SLOWER,
        "noise": SAME,
        "broken": CHANGED,
        "new": ONLY_B,
        "gone": ONLY_A,
        "data": FASTER,
    }
    assert changes_table(changes).row_count == 6


def test_tables_fit_120_columns() -> None:
    from rich.console import Console

    rows = _results().rows
    rows.append(_row(case="conv_transpose2d G 512→256 @4² of a long name " * 3, provider="p" * 60))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rows_table(rows, "title"))
    assert max(len(line.rstrip()) for line in console.export_text().splitlines()) <= 120


def test_numbers_keep_three_digits() -> None:
    assert format_value(0.01234, "s") == "12.3 ms"
    assert format_value(52.8e6, "B") == "52.8 MB"
    assert three_digits(12345.6) == "12,346"
    assert three_digits(0.0) == "0"
