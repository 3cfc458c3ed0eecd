"""The one result format: rows with their environment, as a JSON file that explains itself."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastgan.errors import ConfigError

FORMAT = 1
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
OK, FAILED, ERROR = "ok", "FAILED", "ERROR"
# What the case of a row begins with that tells of correctness alone (gpu-check's).
CORRECTNESS = "correct: "
# The case of the rows that say how each part of gpu-check went.
PART = "gpu-check part"


@dataclass(frozen=True)
class Row:
    """One provider's measurement of one case.

    Attributes:
        case: what was done, readable; with `direction`, `shape`, `dtype` and `provider` it is
            the row's identity.
        status: "ok"; "FAILED" (the result was wrong: never timed into a ratio); "ERROR" (it
            raised). `message` says why.
        median, spread: of `unit`, over `samples` samples; the spread is the interquartile range.
        ratio: how many times better than `baseline`, the best baseline that passed; above 1 is
            better, whatever the unit. `ratio_spread` is the interquartile range over rounds.
        error, tolerance: the correctness gate against float64; see bench/gate.py.
        flops, bytes, floor: the least work the case allows, and the seconds that it takes at the
            measured ceilings; `floor_share` is floor ÷ median.
        implementation: what fastgan chose to serve the case, for fastgan's rows.
    """

    case: str
    provider: str
    direction: str = ""
    shape: str = ""
    dtype: str = ""
    status: str = OK
    message: str = ""
    unit: str = "s"
    median: float | None = None
    spread: float | None = None
    samples: int = 0
    ratio: float | None = None
    ratio_spread: float | None = None
    baseline: str = ""
    error: float | None = None
    tolerance: float | None = None
    flops: float | None = None
    bytes: float | None = None
    floor: float | None = None
    floor_share: float | None = None
    implementation: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str, str, str, str]:
        """What makes two rows of different files the same measurement."""
        return self.case, self.direction, self.shape, self.dtype, self.provider


@dataclass(frozen=True)
class Environment:
    """Where and with what a suite ran."""

    device: str
    device_type: str
    threads: int
    processor: str
    instruction_set: str
    system: str
    python: str
    versions: dict[str, str]
    commit: str
    dirty: bool
    date: str
    command: str
    seed: int


@dataclass
class Results:
    """A suite's rows, the ceilings measured beside them and the environment."""

    suite: str
    environment: Environment
    ceilings: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def default_name(self) -> str:
        """<device-slug>-<suite>.json, as bench/results/ holds it."""
        return f"{slug(self.environment.device)}-{self.suite}.json"

    def write(self, path: Path) -> Path:
        """Write JSON to `path`, whole or not at all; return the path."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
        return path


def read(path: Path) -> Results:
    """Read a result file.

    Raises:
        ConfigError: the file is missing, is no JSON, or is not of this format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"result file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"result file {path} is not JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise ConfigError(
            f"{path} is not a result file of format {FORMAT} (found {found!r}): "
            "measure again with this version of the suite"
        )
    raw["environment"] = Environment(**raw["environment"])
    raw["rows"] = [Row(**row) for row in raw["rows"]]
    return Results(**raw)


def read_all(folder: Path = RESULTS) -> list[Results]:
    """Every result file in `folder`, in the order of their names (less .json)."""
    return [read(path) for path in sorted(folder.glob("*.json"), key=lambda path: path.stem)]


def merge_rows(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """`old` with the rows of `new` in place of those with the same identity, new ones last."""
    merged = {row.identity: row for row in old}
    merged.update({row.identity: row for row in new})
    return list(merged.values())


def slug(text: str) -> str:
    """A file name's worth of `text`: lower case, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def capture_environment(device: torch.device, seed: int) -> Environment:
    """Describe this process, its machine and its source tree."""
    # Results written a moment ago change nothing that is measured.
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
    return Environment(
        device=device_name(device),
        device_type=device.type,
        threads=torch.get_num_threads(),
        processor=processor_name(),
        instruction_set=instruction_set(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(device),
        commit=_git("rev-parse", "--short=12", "HEAD") or "unknown",
        dirty=bool(status),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        command=_command_line(),
        seed=seed,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the cores in use and its best instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} {torch.get_num_threads()} threads {instruction_set()}"


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return re.sub(r"\s+", " ", match[1]).strip() if match else platform.machine()


def instruction_set() -> str:
    """The widest instructions for dense bfloat16 and float32 work that the processor lists."""
    try:
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        return ""
    for flag, name in (
        ("amx_bf16", "AMX-BF16"),
        ("avx512_bf16", "AVX512-BF16"),
        ("avx512f", "AVX512"),
        ("avx2", "AVX2"),
    ):
        if flag in flags:
            return name
    return ""


def _versions(device: torch.device) -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    for package in ("fastgan", "triton", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package == "fastgan":
                import fastgan

                versions[package] = fastgan.__version__
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def _command_line() -> str:
    """The command, without the folders of this machine."""
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return f"python -m bench {shlex.join(arguments)}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
