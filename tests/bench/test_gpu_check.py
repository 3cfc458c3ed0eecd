"""`bench gpu-check` as far as a machine without a GPU allows: every part, tiny, on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu_check import NAMES, CheckOptions, run_gpu_check
from bench.gpu_parts import TAINTED
from bench.results import CORRECTNESS, ERROR, OK, PART, read


def _options(path: Path, *parts: str) -> CheckOptions:
    return CheckOptions(
        torch.device("cpu"), path, parts=parts or NAMES, tiny=True, tests="tests/bench"
    )


@pytest.mark.slow
def test_a_dry_run_walks_every_part_and_writes_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Triton's kernels have tests of their own; interpreted, they would take minutes here.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    path = tmp_path / "check.json"
    run_gpu_check(_options(path), lambda _: None)
    results = read(path)
    parts = {row.provider: row for row in results.rows if row.case == PART}
    assert list(parts) == list(NAMES)
    assert {row.status for row in parts.values()} == {OK}, [row.message for row in parts.values()]
    assert any(row.case.startswith(CORRECTNESS) for row in results.rows)
    assert any(row.case.startswith("DCGAN step") and row.ratio for row in results.rows)
    assert any(row.case.startswith("wgrad") for row in results.rows)
    assert any(row.unit == "B" and row.ratio for row in results.rows)
    assert any(row.case.endswith("one call") for row in results.rows)
    assert results.ceilings
    assert list(tmp_path.iterdir()) == [path]


def _pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run `program` (a part's process, with the request's values as names) in place of a part."""
    start = gpu_check._start
    head = (
        "import json, os, sys, time\n"
        "request = json.load(open(sys.argv[1])); done = request['done']\n"
        "exclude = request['exclude']; stream = open(request['file'], 'a')\n"
        "def say(**message): stream.write(json.dumps(message) + '\\n'); stream.flush()\n"
    )
    monkeypatch.setattr(
        gpu_check,
        "_start",
        lambda command, output: start([sys.executable, "-c", head + program, command[-1]], output),
    )
    monkeypatch.setattr(gpu_check, "POLL_SECONDS", 0.05)


def test_a_part_that_breaks_the_context_is_restarted_without_the_culprit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(
        monkeypatch,
        "say(begun='a')\n"
        "good = {'case': 'a', 'provider': 'eager'}\n"
        "bad = {'case': 'a', 'provider': 'fastgan', 'status': 'ERROR', 'message': 'CUDA error'}\n"
        "if exclude.get('a') == ['fastgan']: say(rows=[good]); say(done='a'); sys.exit(0)\n"
        f"say(rows=[bad]); say(tainted=['a', 'fastgan']); sys.exit({TAINTED})\n",
    )
    results = run_gpu_check(_options(tmp_path / "check.json", "ops"), lambda _: None)
    rows = {row.provider: row for row in results.rows}
    assert rows["fastgan"].status == ERROR
    assert rows["eager"].status == OK
    assert rows["ops"].status == OK
    assert rows["ops"].extra["restarts"] == 1


def test_a_task_that_kills_its_process_is_named_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(
        monkeypatch,
        "for name in ('a', 'b'):\n"
        "    if name in done: continue\n"
        "    say(begun=name)\n"
        "    if name == 'a': os.abort()\n"
        "    say(rows=[{'case': name, 'provider': 'eager'}]); say(done=name)\n",
    )
    results = run_gpu_check(_options(tmp_path / "check.json", "ops"), lambda _: None)
    status = {(row.case, row.provider): row.status for row in results.rows}
    assert status == {("a", "all"): ERROR, ("b", "eager"): OK, (PART, "ops"): OK}


def test_what_a_part_measured_before_it_hung_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(
        monkeypatch,
        "say(begun='a'); say(rows=[{'case': 'a', 'provider': 'eager'}]); say(done='a')\n"
        "say(begun='b'); time.sleep(60)\n",
    )
    monkeypatch.setitem(gpu_check.LIMITS, "ops", 3.0)
    path = tmp_path / "check.json"
    run_gpu_check(_options(path, "ops"), lambda _: None)
    rows = {row.provider: row for row in read(path).rows}
    assert rows["eager"].status == OK
    assert rows["ops"].status == ERROR
    assert "stopped after 3 s in b" in rows["ops"].message


def test_a_part_that_cannot_start_says_why_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, "if request['part'] == 'ops': sys.exit('no such device')\n")
    options = _options(tmp_path / "check.json", "ops", "memory")
    results = run_gpu_check(options, lambda _: None)
    rows = {row.provider: row for row in results.rows}
    assert rows["ops"].status == ERROR
    assert "no such device" in rows["ops"].message
    assert rows["memory"].status == OK
