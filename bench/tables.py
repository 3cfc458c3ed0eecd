"""Results for the eyes: rich tables that fit 120 columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.ceilings import describe_ceilings
from bench.results import CORRECTNESS, OK, PART, Environment, Results, Row

WIDTH = 120


def bench_console() -> Console:
    """A console for tables: as wide as the terminal, 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def format_value(value: float | None, unit: str) -> str:
    """A quantity with a unit that leaves three digits: "12.3 ms", "48.1 MB", "12,300/s"."""
    if value is None:
        return ""
    if unit == "s":
        return _scaled(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")))
    if unit == "B":
        return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))
    return f"{three_digits(value)} {unit}"


def three_digits(value: float) -> str:
    """A number rounded to three digits, without an exponent, thousands parted by commas."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, places):,.{places}f}"


def format_spread(row: Row) -> str:
    """The spread as a share of the median: "±3%" is half the distance between the quartiles."""
    if row.median is None or row.spread is None or row.samples < 2:
        return ""
    return f"±{100 * row.spread / 2 / row.median:.0f}%"


def format_ratio(row: Row) -> str:
    """ "1.42×" against the best baseline; nothing for a row that has none."""
    return "" if row.ratio is None else f"{row.ratio:.2f}×"


def rows_table(rows: Iterable[Row], title: str) -> Table:
    """One line a provider, cases parted by rules."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("case", overflow="fold", max_width=40)
    table.add_column("type", no_wrap=True)
    table.add_column("provider", overflow="fold", max_width=24)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("of floor", justify="right", no_wrap=True)
    table.add_column("error ÷ allowed", justify="right", no_wrap=True)
    for _, group in itertools.groupby(rows, key=lambda row: row.identity[:4]):
        for index, row in enumerate(group):
            lead = ("", "") if index else (escape(case_words(row)), _short(row.dtype))
            table.add_row(*lead, *_cells(row))
        table.add_section()
    return table


def show(results: Results, console: Console) -> None:
    """Print a suite's rows, its ceilings and what went wrong."""
    for line in describe(results.environment):
        console.print(line, highlight=False, style="dim")
    if results.ceilings:
        console.print(
            f"ceilings: {describe_ceilings(results.ceilings)}", highlight=False, style="dim"
        )
    correct = [row for row in results.rows if row.case.startswith(CORRECTNESS)]
    if correct:
        good = sum(row.status == OK for row in correct)
        console.print(f"correctness: {good} of {len(correct)} results agree with float64")
    timed = [
        row for row in results.rows if not row.case.startswith(CORRECTNESS) and row.case != PART
    ]
    console.print(rows_table(timed, f"bench {results.suite}"))
    for row in results.rows:
        if row.status != OK:
            where = " ".join(filter(None, (row.case, row.direction, row.dtype)))
            console.print(
                Text(f"{row.status}: {row.provider}, {where}: {row.message}", style="red")
            )
    for note in results.notes:
        console.print(Text(note, style="yellow"))


def describe(environment: Environment) -> list[str]:
    """The environment in two lines."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    threads = f", {environment.threads} CPU threads" if environment.device_type == "cuda" else ""
    tree = f"commit {environment.commit}{' with changes' if environment.dirty else ''}"
    return [
        f"{environment.device}{threads}, {environment.system}; {tree}; {environment.date}",
        f"{versions}, Python {environment.python}",
    ]


def _cells(row: Row) -> list[str | Text]:
    provider = Text(row.provider, style="bold cyan" if row.provider.startswith("fastgan") else "")
    if row.implementation:
        provider.append(f" ({row.implementation})", style="dim")
    share = "" if row.floor_share is None else f"{100 * row.floor_share:.0f}%"
    gate = ""
    if row.tolerance:
        gate = "∞" if row.error is None else f"{row.error / row.tolerance:.2f}"
    if row.status != OK:
        return [provider, Text(row.status, style="red"), "", "", "", gate]
    ratio = Text(format_ratio(row))
    if row.ratio is not None and row.baseline != row.provider:
        ratio.stylize("green" if row.ratio > 1.02 else "red" if row.ratio < 0.98 else "")
    return [
        provider,
        format_value(row.median, row.unit),
        format_spread(row),
        ratio,
        share,
        gate,
    ]


def case_words(row: Row) -> str:
    """The case with its direction and batch; the whole shape is in the JSON."""
    words = [row.case]
    if row.direction not in ("", "step"):
        words.append(row.direction.replace("forward+backward", "fwd+bwd"))
    if row.shape:
        words[-1] += ","
        words.append(row.shape.split(":")[0])
    return " ".join(words)


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for factor, name in units:
        if value >= factor:
            return f"{three_digits(value / factor)} {name}"
    factor, name = units[-1]
    return f"{three_digits(value / factor)} {name}"
