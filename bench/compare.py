"""`bench compare A.json B.json`: what moved beyond the spread between two runs of a suite."""

from __future__ import annotations

from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.results import OK, Results, Row
from bench.tables import case_words, format_value

FASTER, SLOWER, SAME, CHANGED = "better", "worse", "same", "status"
ONLY_A, ONLY_B = "only in A", "only in B"


@dataclass(frozen=True)
class Change:
    """One measurement in two files.

    Attributes:
        a, b: the rows, None where a file lacks it.
        verdict: better or worse where the medians differ by more than the two spreads together,
            else same; status where a row went from ok to not ok or back; only in A, only in B.
    """

    a: Row | None
    b: Row | None
    verdict: str

    @property
    def row(self) -> Row:
        """The newer of the two that there is."""
        found = self.b or self.a
        assert found is not None
        return found

    @property
    def relative(self) -> float | None:
        """By how much B's median differs from A's, as a share of A's."""
        if self.a is None or self.b is None or not self.a.median or self.b.median is None:
            return None
        return self.b.median / self.a.median - 1.0


def compare(a: Results, b: Results) -> list[Change]:
    """Match rows by case, direction, shape, dtype and provider, in the order of B, then A's."""
    old = {row.identity: row for row in a.rows}
    new = {row.identity: row for row in b.rows}
    changes = [Change(old.get(key), row, _verdict(old.get(key), row)) for key, row in new.items()]
    return changes + [Change(row, None, ONLY_A) for key, row in old.items() if key not in new]


def _verdict(a: Row | None, b: Row) -> str:
    if a is None:
        return ONLY_B
    if a.status != b.status:
        return CHANGED
    if a.status != OK or a.median is None or b.median is None:
        return SAME
    # The quartiles of both runs must lie apart, not only their medians.
    if abs(a.median - b.median) <= ((a.spread or 0.0) + (b.spread or 0.0)) / 2:
        return SAME
    higher_is_better = b.unit not in ("s", "B")
    return FASTER if (b.median > a.median) == higher_is_better else SLOWER


def changes_table(changes: list[Change], everything: bool = False) -> Table:
    """What moved; with `everything` also what did not."""
    table = Table(title="B against A", title_justify="left", title_style="bold")
    table.add_column("case", overflow="fold", max_width=44)
    table.add_column("provider", overflow="fold", max_width=22)
    for name in ("A", "B", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    colours = {FASTER: "green", SLOWER: "red", CHANGED: "red"}
    for change in changes:
        if change.verdict == SAME and not everything:
            continue
        relative = change.relative
        table.add_row(
            escape(f"{case_words(change.row)} {change.row.dtype}".strip()),
            change.row.provider,
            _value(change.a),
            _value(change.b),
            "" if relative is None else f"{100 * relative:+.1f}%",
            Text(change.verdict, style=colours.get(change.verdict, "dim")),
        )
    return table


def warnings(a: Results, b: Results) -> list[str]:
    """What makes the two files hard to compare: another device, another thread count."""
    found = []
    for name in ("device", "threads"):
        before, after = getattr(a.environment, name), getattr(b.environment, name)
        if before != after:
            found.append(f"{name} differs: {before} in A, {after} in B")
    return found


def _value(row: Row | None) -> str:
    if row is None:
        return ""
    return format_value(row.median, row.unit) if row.status == OK else row.status
