"""`bench gpu-check`: everything that only a GPU can tell, in one command and one JSON file.

It runs from a bare source tree, without a network and without installing anything. Each part is a
process of its own with a limit of its own; what a part has measured is in the file as soon as it
is measured, and a part that fails, hangs or is killed costs only itself.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu_parts import PARTS, TAINTED
from bench.results import (
    CORRECTNESS,
    ERROR,
    OK,
    PART,
    ROOT,
    Results,
    Row,
    capture_environment,
    merge_rows,
)

BUILD, TESTS = "build", "tests"
# Seconds that a part may take; the suite's parts share the time of --minutes besides.
LIMITS = {
    BUILD: 180.0,
    TESTS: 240.0,
    "correctness": 150.0,
    "step": 120.0,
    "ops": 180.0,
    "memory": 90.0,
    "overhead": 40.0,
    "step-compiled": 240.0,
    "ops-compiled": 120.0,
}
NAMES = (BUILD, TESTS, *PARTS)
MOST_RESTARTS = 8
POLL_SECONDS = 1.0
_BUILD_PROGRAM = """
import importlib.util
if importlib.util.find_spec("fastgan.native") is None:
    print("there is no fastgan.native in this tree: nothing to build")
else:
    from fastgan import native
    if {build}:
        native.build()
    status = native.status()
    print(f"native kernels: usable {{status.usable}}, level {{status.level}}, {{status.reason}}")
"""


@dataclass(frozen=True)
class CheckOptions:
    """What `bench gpu-check` was asked for.

    Attributes:
        device: where to run; a dry run may be on the CPU.
        file: the JSON file.
        minutes: time for the measuring parts together; build and tests have limits of their own.
        parts: names among `NAMES`, in their order.
        tiny: a dry run: every part at the smallest sizes, nothing compiled.
        tests: what pytest collects.
        seed: for the record.
    """

    device: torch.device
    file: Path
    minutes: float = 8.0
    parts: tuple[str, ...] = NAMES
    tiny: bool = False
    tests: str = "tests"
    seed: int = 0


def run_gpu_check(options: CheckOptions, report: Callable[[str], None] = print) -> Results:
    """Run the parts one after the other; the file is rewritten whenever there is something new."""
    results = Results("gpu-check", capture_environment(options.device, options.seed))
    results.write(options.file)
    left = options.minutes * 60
    for name in options.parts:
        begin = time.monotonic()
        limit = LIMITS[name] if name in (BUILD, TESTS) else min(LIMITS[name], left)
        report(f"part {name}, at most {limit:.0f} s")
        if limit <= 0:
            part = Row(PART, name, status=ERROR, message="no time was left for it")
        elif name in (BUILD, TESTS):
            part = _run_command(name, _command(name, options), limit)
        else:
            part = _measure(name, options, results, limit, report)
        seconds = time.monotonic() - begin
        if name not in (BUILD, TESTS):
            left -= seconds
        part = dataclasses.replace(part, median=round(seconds, 1), samples=1)
        results.rows = merge_rows(results.rows, [part])
        results.write(options.file)
        report(f"part {name}: {part.status}, {seconds:.0f} s. {part.message}")
    return results


def _command(name: str, options: CheckOptions) -> list[str]:
    if name == BUILD:
        return [sys.executable, "-c", _BUILD_PROGRAM.format(build=not options.tiny)]
    # Without pyproject's addopts, which name options of plugins that may not be installed here.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-q"]
    if options.tiny:
        return [*command, "-m", "gpu", "--collect-only", options.tests]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(max(1, min(6, (os.cpu_count() or 2) // 2)))]
    return [*command, "-ra", "-m", "gpu", "--maxfail=200", options.tests]


def _run_command(name: str, command: list[str], limit: float) -> Row:
    """Run to the end or the limit; the row keeps the end of what was printed."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = _start(command, output)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            _stop(process)
        output.seek(0)
        lines = output.read().splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    # pytest: 5 is "no test was selected", which a dry run may well see.
    good = status == 0 or (name == TESTS and status == 5)
    message = _without_paths(last) if status is not None else f"stopped after {limit:.0f} s: {last}"
    tail = [_without_paths(line) for line in lines[-80:]]
    return Row(
        PART,
        name,
        status=OK if good else ERROR,
        message=message[:300],
        extra={"exit_status": status, "output": tail},
    )


def _measure(
    name: str,
    options: CheckOptions,
    results: Results,
    limit: float,
    report: Callable[[str], None],
) -> Row:
    """Run a measuring part, restarting it past whatever breaks its process."""
    deadline = time.monotonic() + limit
    with tempfile.TemporaryDirectory() as folder:
        lines = _Lines(Path(folder) / "rows.jsonl", name, results, options.file)
        status: int | None = 0
        for restart in range(MOST_RESTARTS + 1):
            request = Path(folder) / "request.json"
            request.write_text(
                json.dumps(
                    {
                        "part": name,
                        "device": str(options.device),
                        "tiny": options.tiny,
                        "done": lines.done,
                        "exclude": lines.exclude,
                        "file": str(lines.path),
                    }
                )
            )
            with open(Path(folder) / "output", "a+", encoding="utf-8") as output:
                command = [sys.executable, "-m", "bench.gpu_parts", str(request)]
                process = _start(command, output)
                status = _follow(process, lines, deadline, report)
            if status in (0, None):
                break
            if status != TAINTED:
                lines.blame_begun(f"its process ended with status {status}")
            report(f"part {name}: restart {restart + 1} past {lines.last or 'its start'}")
            if not lines.last:
                break  # it cannot even start
        said = (Path(folder) / "output").read_text(encoding="utf-8").splitlines()
    last = _without_paths(next((line for line in reversed(said) if line.strip()), ""))
    message = f"{len(lines.done)} tasks"
    if status is None:
        message += f", stopped after {limit:.0f} s in {lines.begun}"
    elif status != 0:
        message += f", given up: {last}"
    return Row(
        PART,
        name,
        status=OK if status == 0 else ERROR,
        message=message[:300],
        extra={"restarts": restart, "excluded": lines.exclude, "output": said[-20:]},
    )


class _Lines:
    """The parent's end of the protocol of bench/gpu_parts.py."""

    def __init__(self, path: Path, part: str, results: Results, file: Path) -> None:
        self.path, self.part, self.results, self.file = path, part, results, file
        self.done: list[str] = []
        self.exclude: dict[str, list[str]] = {}
        self.begun = self.last = ""
        self._read = 0

    def take(self) -> None:
        """Take what has come since the last time; write the file if there was anything."""
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as stream:
            stream.seek(self._read)
            text = stream.read()
            whole = text.rfind("\n") + 1
            self._read += len(text[:whole].encode())
        for line in text[:whole].splitlines():
            self._one(json.loads(line))
        if whole:
            self.results.write(self.file)

    def _one(self, message: dict[str, Any]) -> None:
        [(kind, value)] = message.items()
        if kind == "begun":
            self.begun = self.last = value
        elif kind == "ceilings":
            # Of several measurements the highest is what the device can do.
            for rate, seconds in value.items():
                known = self.results.ceilings.get(rate, 0.0)
                self.results.ceilings[rate] = max(known, seconds)
        elif kind == "rows":
            rows = [Row(**row) for row in value]
            if self.part == "correctness":
                rows = [dataclasses.replace(row, case=CORRECTNESS + row.case) for row in rows]
            self.results.rows = merge_rows(self.results.rows, rows)
        elif kind == "tainted":
            task, provider = value
            self.exclude.setdefault(task, []).append(provider)
            self.begun = ""
        elif kind == "done":
            self.done.append(value)
            self.begun = ""

    def blame_begun(self, reason: str) -> None:
        """Give the task in hand an ERROR row, and never start it again."""
        if self.begun:
            row = Row(self.begun, "all", direction=self.part, status=ERROR, message=reason)
            self.results.rows = merge_rows(self.results.rows, [row])
            self.done.append(self.begun)
            self.begun = ""
            self.results.write(self.file)


def _follow(
    process: subprocess.Popen[bytes],
    lines: _Lines,
    deadline: float,
    report: Callable[[str], None],
) -> int | None:
    """Take rows until the process ends; its status, or None where the deadline ended it."""
    shown = ""
    lines.last = ""
    while True:
        try:
            status: int | None = process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        lines.take()
        if lines.begun and lines.begun != shown:
            shown = lines.begun
            report(f"  {shown}")
        if status is not None:
            return status
        if time.monotonic() > deadline:
            _stop(process)
            lines.take()
            return None


def _start(command: list[str], output: Any) -> subprocess.Popen[bytes]:
    """A process in a session of its own, so that its children can be stopped with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it has started."""
    for signal_number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(patience)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _without_paths(line: str) -> str:
    """A line without the folders of this machine."""
    return re.sub(r"/[^\s:'\"]*/", "", line)
