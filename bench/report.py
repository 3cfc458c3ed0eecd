"""`bench report`: README's tables and the plots, made from bench/results/*.json and nothing else.

A block of README between <!-- bench:begin NAME --> and <!-- bench:end NAME --> belongs to the
suite of that name ("tables": to all of them, under headings) and is replaced whole; a test holds
README to what this makes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.plots import plot_name, plots_of
from bench.results import CORRECTNESS, OK, RESULTS, Environment, Results, Row
from bench.tables import format_spread, format_value, three_digits
from fastgan.errors import ConfigError

EVERYTHING = "tables"
NOTHING = "No measurements of this kind are committed yet."
_BLOCK = re.compile(
    r"(?P<begin><!-- bench:begin (?P<name>[\w-]+) -->\n)(?P<body>.*?)(?P<end><!-- bench:end "
    r"(?P=name) -->)",
    re.DOTALL,
)


def render(text: str, results: Sequence[Results]) -> str:
    """`text` with the body of every block replaced; without results, `text` as it is.

    Raises:
        ConfigError: a block has a name that no table has, or is not closed.
    """
    begun = re.findall(r"<!-- bench:begin ([\w-]+) -->", text)
    closed = [match["name"] for match in _BLOCK.finditer(text)]
    if begun != closed:
        odd = next(name for name in begun if name not in closed)
        raise ConfigError(f"README's block bench:begin {odd} has no bench:end {odd} after it")
    for name in begun:
        if name not in (EVERYTHING, *BLOCKS):
            allowed = ", ".join((EVERYTHING, *BLOCKS))
            raise ConfigError(f"README has a block bench:begin {name}, but blocks are {allowed}")
    if not results:
        return text
    return _BLOCK.sub(
        lambda match: f"{match['begin']}{block(match['name'], results)}\n{match['end']}", text
    )


def block(name: str, results: Sequence[Results]) -> str:
    """The Markdown of one block: a table for each device that has been measured."""
    parts = []
    for kind in BLOCKS if name == EVERYTHING else (name,):
        tables = [(one, BLOCKS[kind].table(one)) for one in results]
        tables = [(one, lines) for one, lines in tables if lines]
        if tables and name == EVERYTHING:
            parts.append(f"**{BLOCKS[kind].title}**")
        parts += ["\n".join([_provenance(one.environment), "", *lines]) for one, lines in tables]
    return "\n\n".join(parts) or NOTHING


def write_readme(readme: Path, results: Sequence[Results]) -> bool:
    """Bring README up to date; return whether it changed."""
    before = readme.read_text(encoding="utf-8")
    after = render(before, results)
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _step_table(results: Results) -> list[str]:
    rows = [row for row in results.rows if row.direction == "step" and row.unit == "s"]
    if not rows:
        return []
    lines = _header("step", "type", "", "time", "images/s", "× best baseline", "of the floor")
    lines += [
        _line(
            f"{row.case.removeprefix('DCGAN step ')}, {row.shape}",
            row.dtype,
            _bold_ours(row.provider),
            _time(row),
            _number(row.extra.get("images_per_second")),
            _ratio(row),
            _share(row),
        )
        for row in rows
    ]
    return lines + _pictures(results, ("steps", "sweep"))


def _memory_table(results: Results) -> list[str]:
    rows = [row for row in results.rows if row.unit == "B"]
    if not rows:
        return []
    lines = _header("step", "type", "", "peak memory", "÷ best baseline")
    lines += [
        _line(
            f"{row.case.removeprefix('DCGAN step ').removesuffix(', peak')}, {row.shape}",
            row.dtype,
            _bold_ours(row.provider),
            format_value(row.median, "B") if row.status == OK else row.status,
            "" if not row.ratio else f"{1 / row.ratio:.2f}",
        )
        for row in rows
    ]
    return lines


def _operator_table(results: Results) -> list[str]:
    rows = [
        row
        for row in results.rows
        if row.provider == "fastgan"
        and row.direction in ("forward", "forward+backward")
        and not row.case.endswith("one call")
        and not row.case.startswith(CORRECTNESS)
    ]
    if not rows:
        return []
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        key = (row.case.split()[0], row.shape.split(":")[0], row.dtype, row.direction)
        groups.setdefault(key, []).append(row)
    lines = _header(
        "operator", "batch", "type", "", "shapes", "× best baseline (mean)", "least", "most"
    )
    for (operator, batch, dtype, direction), members in sorted(groups.items()):
        ratios = [row.ratio for row in members if row.ratio]
        failed = len(members) - len(ratios)
        shapes = f"{len(members)}" + (f", {failed} failed" if failed else "")
        spread = (
            (f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}")
            if ratios
            else ("", "", "")
        )
        lines.append(
            _line(operator, batch.removeprefix("batch "), dtype, direction, shapes, *spread)
        )
    return lines + _pictures(results, ("ratios", "roofline"))


def _data_table(results: Results) -> list[str]:
    rows = [row for row in results.rows if row.case.startswith("images to a batch")]
    if not rows:
        return []
    lines = _header("pipeline", "a batch", "images/s", "× best baseline")
    lines += [
        _line(
            f"{_bold_ours(row.provider)}, {row.shape}",
            _time(row),
            _number(row.extra.get("images_per_second")),
            _ratio(row),
        )
        for row in rows
    ]
    return lines


def _overhead_table(results: Results) -> list[str]:
    rows = [row for row in results.rows if row.case.endswith("one call")]
    if not rows:
        return []
    lines = _header("one call, forward + backward", "", "time", "× torch's time")
    lines += [
        _line(
            row.case.removesuffix(", one call"),
            _bold_ours(row.provider),
            _time(row),
            "" if not row.ratio else f"{1 / row.ratio:.2f}",
        )
        for row in rows
    ]
    return lines


@dataclass(frozen=True)
class Block:
    """A kind of table: its heading, and what makes its lines (none where there are no rows)."""

    title: str
    table: Callable[[Results], list[str]]


BLOCKS = {
    "step": Block("A training step", _step_table),
    "ops": Block("Operators", _operator_table),
    "memory": Block("Peak memory of a step", _memory_table),
    "data": Block("Input pipeline", _data_table),
    "overhead": Block("Cost of a call", _overhead_table),
}


def _provenance(environment: Environment) -> str:
    versions = ", ".join(
        f"{name} {version}"
        for name, version in environment.versions.items()
        if name in ("torch", "triton", "cuda", "cudnn")
    )
    tree = f"commit {environment.commit}{' with changes' if environment.dirty else ''}"
    command = environment.command.replace("|", r"\|")
    return f"*{environment.device}; {environment.date}; {versions}; {tree}; `{command}`*"


def _pictures(results: Results, names: Sequence[str]) -> list[str]:
    folder = RESULTS.relative_to(RESULTS.parent.parent)
    links = [
        f"![{name}]({folder.as_posix()}/{plot_name(results, name)})"
        for name in plots_of(results)
        if name in names
    ]
    return ["", *links] if links else []


def _header(*names: str) -> list[str]:
    return [_line(*names), _line(*("---" for _ in names))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _bold_ours(provider: str) -> str:
    return f"**{provider}**" if provider.startswith("fastgan") else provider


def _time(row: Row) -> str:
    if row.status != OK:
        return row.status
    return " ".join(filter(None, (format_value(row.median, "s"), format_spread(row))))


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f}"


def _share(row: Row) -> str:
    return "" if row.floor_share is None else f"{100 * row.floor_share:.0f}%"


def _number(value: float | None) -> str:
    return "" if value is None else three_digits(value)
