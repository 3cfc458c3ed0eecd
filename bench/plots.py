"""`bench report`'s pictures: ratios as bars, the roofline, the batch sweep.

Axes start where the quantity does: bars of a rate at zero, bars of a ratio at 1 on a logarithmic
axis, where half and twice are as long. Every figure names its device, date and commit; error bars
span the quartiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ceilings import COPY, MATRIX
from bench.results import OK, Environment, Results, Row, slug
from bench.tables import case_words
from fastgan.errors import MissingExtraError

OURS_COLOUR = "#0b6e4f"
# fastgan's own variants, where several stand beside each other.
OURS_COLOURS = (OURS_COLOUR, "#3d9970", "#7fc8a0", "#b5e0c5", "#2a7f9e", "#8ccfdc")
BASELINE_COLOURS = ("#4c72b0", "#dd8452", "#8172b3", "#937860", "#64b5cd")
MOST_BARS = 40


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw every plot that the results hold data for; return the files written.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    written = []
    for name, draw in (
        ("steps", _step_bars),
        ("sweep", _batch_sweep),
        ("ratios", _ratio_bars),
        ("roofline", _roofline),
    ):
        figure = draw(plt, results)
        if figure is None:
            continue
        figure.supxlabel(
            _caption(results.environment), x=0.99, ha="right", fontsize=7, color="#555555"
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / plot_name(results, name)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        plt.close(figure)
        written.append(path)
    return written


def plot_name(results: Results, name: str) -> str:
    """<device-slug>-<suite>-<plot>.png."""
    return f"{slug(results.environment.device)}-{results.suite}-{name}.png"


def plots_of(results: Results) -> list[str]:
    """The names of the plots that `draw_all` would draw."""
    names = []
    if step_rows(results):
        names.append("steps")
    if len({row.shape for row in step_rows(results)}) > 1:
        names.append("sweep")
    if ratio_rows(results):
        names.append("ratios")
    if roofline_rows(results) and COPY in results.ceilings:
        names.append("roofline")
    return names


def step_rows(results: Results) -> list[Row]:
    """The measured training steps."""
    return [
        row
        for row in results.rows
        if row.direction == "step" and row.unit == "s" and row.status == OK
    ]


def ratio_rows(results: Results) -> list[Row]:
    """fastgan's operator rows with a ratio: at the largest batch, forward + backward."""
    rows = [
        row
        for row in results.rows
        if row.status == OK
        and row.ratio is not None
        and row.provider == "fastgan"
        and row.direction == "forward+backward"
        and not row.case.endswith("one call")
    ]
    largest = max((_batch(row) for row in rows), default=0)
    return [row for row in rows if _batch(row) == largest]


def roofline_rows(results: Results) -> list[Row]:
    """Convolutions in one pass each, fastgan's and the library's."""
    return [
        row
        for row in results.rows
        if row.status == OK and row.flops and row.bytes and row.direction in ("", "forward")
    ]


def _step_bars(plt: Any, results: Results) -> Any:
    rows = step_rows(results)
    if not rows:
        return None
    cases = list(dict.fromkeys((row.case, row.shape, row.dtype) for row in rows))
    providers = list(dict.fromkeys(row.provider for row in rows))
    height = 0.8 / len(providers)
    figure, axes = plt.subplots(
        figsize=(9, 1.2 + max(2.0, 0.26 * len(cases) * len(providers))), layout="constrained"
    )
    for index, provider in enumerate(providers):
        mine = {(row.case, row.shape, row.dtype): row for row in rows if row.provider == provider}
        for position, case in enumerate(cases):
            row = mine.get(case)
            if row is None or not row.median:
                continue
            rate = _batch(row) / row.median
            error = rate * (row.spread or 0.0) / 2 / row.median
            y = position + (index - (len(providers) - 1) / 2) * height
            axes.barh(
                y,
                rate,
                height,
                xerr=error,
                color=_colour(provider, providers),
                label=provider if position == 0 else None,
                error_kw={"elinewidth": 0.8, "capsize": 2},
            )
            ratio = "" if row.ratio is None else f"  {row.ratio:.2f}×"
            axes.text(rate + error, y, f" {rate:,.0f}{ratio}", va="center", fontsize=7)
    axes.set_yticks(
        range(len(cases)), [f"{case[0]}\n{case[1]}, {case[2]}" for case in cases], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    axes.set_xlabel("images a second (×: against the best baseline)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=4)
    return figure


def _batch_sweep(plt: Any, results: Results) -> Any:
    rows = step_rows(results)
    if len({row.shape for row in rows}) < 2:
        return None
    panels = list(dict.fromkeys((row.case, row.dtype) for row in rows))
    figure, grid = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4), layout="constrained", squeeze=False
    )
    providers = list(dict.fromkeys(row.provider for row in rows))
    for axes, (case, dtype) in zip(grid[0], panels, strict=True):
        for provider in providers:
            mine = sorted(
                (_batch(row), _batch(row) / row.median)
                for row in rows
                if (row.case, row.dtype, row.provider) == (case, dtype, provider) and row.median
            )
            if mine:
                axes.plot(
                    *zip(*mine, strict=True),
                    marker="o",
                    label=provider,
                    color=_colour(provider, providers),
                )
        batches = sorted({_batch(row) for row in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("batch size")
        axes.set_ylabel("images a second")
        axes.set_title(f"{case}, {dtype}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _ratio_bars(plt: Any, results: Results) -> Any:
    rows = ratio_rows(results)
    if not rows:
        return None
    panels = [
        [row for row in rows if row.dtype == dtype][:MOST_BARS]
        for dtype in dict.fromkeys(row.dtype for row in rows)
    ]
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(7.2 * len(panels), 1.3 + 0.26 * max(map(len, panels))),
        layout="constrained",
        squeeze=False,
    )
    reach = max(2.0, *(max(row.ratio or 1.0, 1 / (row.ratio or 1.0)) for row in rows))
    for axes, mine in zip(grid[0], panels, strict=True):
        for place, row in enumerate(mine):
            ratio, half = row.ratio or 1.0, (row.ratio_spread or 0.0) / 2
            colour = OURS_COLOUR if ratio >= 1 else "#b33a3a"
            # The lower whisker of a ratio less certain than itself would leave the axis.
            low = min(half, 0.8 * ratio)
            axes.barh(
                place,
                ratio - 1.0,
                left=1.0,
                color=colour,
                xerr=[[low], [half]],
                error_kw={"elinewidth": 0.8, "capsize": 2},
            )
            axes.text(
                1.02,
                place,
                f"{ratio:.2f}×  {row.implementation}, against {row.baseline}",
                va="center",
                fontsize=7,
                transform=axes.get_yaxis_transform(),
            )
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        ticks = [2.0**power for power in range(-12, 13) if 1 / reach <= 2.0**power <= reach]
        axes.set_xlim(1 / (1.25 * reach), 1.25 * reach)
        axes.set_xticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
        axes.set_yticks(
            range(len(mine)), [case_words(row).split(" fwd+bwd")[0] for row in mine], fontsize=7
        )
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
        axes.set_xlabel("times as fast as the best baseline")
        title = f"forward + backward, {mine[0].dtype}, {mine[0].shape.split(':')[0]}"
        axes.set_title(title, fontsize=10)
    return figure


def _roofline(plt: Any, results: Results) -> Any:
    rows = roofline_rows(results)
    if not rows or COPY not in results.ceilings:
        return None
    dtypes = [dtype for dtype in dict.fromkeys(row.dtype for row in rows) if dtype in MATRIX]
    figure, grid = plt.subplots(
        1, len(dtypes), figsize=(6.4 * len(dtypes), 4.8), layout="constrained", squeeze=False
    )
    bandwidth = results.ceilings[COPY]
    for axes, dtype in zip(grid[0], dtypes, strict=True):
        mine = [row for row in rows if row.dtype == dtype and row.flops and row.bytes]
        rate = results.ceilings[MATRIX[dtype]]
        intensities = [row.flops / row.bytes for row in mine]  # type: ignore[operator]
        low = min([*intensities, rate / bandwidth]) / 2
        high = max([*intensities, rate / bandwidth]) * 2
        xs = [low * (high / low) ** (step / 200) for step in range(201)]
        axes.plot(xs, [min(x * bandwidth, rate) / 1e9 for x in xs], color="black", linewidth=1)
        ridge = f"copy {bandwidth / 1e9:,.0f} GB/s, matrix product {rate / 1e9:,.0f} GFLOP/s"
        for ours, marker, colour, label in (
            (False, "o", BASELINE_COLOURS[0], "best baseline"),
            (True, "^", OURS_COLOUR, "fastgan's best"),
        ):
            best = _fastest(mine, ours)
            axes.scatter(
                [row.flops / row.bytes for row in best],  # type: ignore[operator]
                [row.flops / row.median / 1e9 for row in best],  # type: ignore[operator]
                marker=marker,
                s=26,
                color=colour,
                alpha=0.8,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("FLOP a byte of the least traffic")
        axes.set_ylabel("GFLOP/s")
        axes.set_title(f"convolutions, one pass, {dtype}\n{ridge}", fontsize=9)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, loc="lower right")
    return figure


def _fastest(rows: Sequence[Row], ours: bool) -> list[Row]:
    """The fastest row of each case among fastgan's or among the others."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.provider.startswith("fastgan") != ours or not row.median:
            continue
        key = row.identity[:4]
        if key not in best or row.median < (best[key].median or math.inf):
            best[key] = row
    return list(best.values())


def _colour(provider: str, providers: Sequence[str]) -> str:
    ours = provider.startswith("fastgan")
    peers = [name for name in providers if name.startswith("fastgan") == ours]
    colours = OURS_COLOURS if ours else BASELINE_COLOURS
    return colours[peers.index(provider) % len(colours)]


def _batch(row: Row) -> int:
    """The batch size that a row's shape begins with; 0 where it names none."""
    words = row.shape.split(":")[0].split()
    return int(words[1]) if len(words) == 2 and words[0] == "batch" else 0


def _caption(environment: Environment) -> str:
    tree = environment.commit + (" with changes" if environment.dirty else "")
    torch = environment.versions.get("torch", "?")
    return f"{environment.device}, torch {torch}, fastgan {tree}, {environment.date}"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "bench report draws with matplotlib, which is not installed: pip install fastgan[plot]"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
