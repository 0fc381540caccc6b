"""Figures of several tasks at once; every function draws a table of `analysis.paper` and returns its axes."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from k24lab.analysis.curve_plots import N_MARKERS, new_axes
from k24lab.analysis.style import GREY, LineStyle, method_style, variant_styles

FAR = 6.0  # times the median length: further differences are numbers
TITLE_WIDTH = 12  # letters of an aggregate's name, before a second line
TASK_WIDTH = 30  # letters of a task beside an axis, before a second line


def interval_marks(table: pd.DataFrame, ax: Axes, styles: Mapping[str, LineStyle], *, title: str = "") -> Axes:
    """One aggregate: a mark and its interval per variant (columns variant, value, low, high), best at the top."""
    names = [name for name in styles if name in set(table["variant"])]
    rows = table.set_index("variant").loc[names]
    for y, (name, row) in enumerate(rows.iterrows()):
        look = styles[str(name)]
        ax.barh(y, row["high"] - row["low"], left=row["low"], height=0.7, color=look.color, alpha=0.35, linewidth=0)
        ax.plot(row["value"], y, marker=look.marker, color=look.color, markersize=3, markeredgewidth=0)
    ax.set_yticks(range(len(rows)), [styles[str(name)].label for name in rows.index])
    ends = rows[["low", "value", "high"]].to_numpy(dtype=float)
    left, right = float(np.nanmin(ends)), float(np.nanmax(ends))
    pad = 0.06 * (right - left) or 0.5
    ax.set(title=title, xlim=(left - pad, right + pad), ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", linewidth=0.3, color="0.85")
    return ax


def aggregate_panels(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """A panel per aggregate; the names of the variants stand at the first alone."""
    styles = variant_styles(table["variant"].unique())
    for k, (ax, name) in enumerate(zip(axes, table["aggregate"].unique(), strict=True)):
        interval_marks(table[table["aggregate"] == name], ax, styles, title=textwrap.fill(str(name), TITLE_WIDTH))
        if k:
            ax.set_yticklabels([])


def lines(table: pd.DataFrame, x: str, y: str, ax: Axes | None = None, *, xlabel: str, ylabel: str) -> Axes:
    """A line and its band per variant: a performance profile, or a sample-efficiency curve."""
    ax = ax or new_axes()
    for variant, look in variant_styles(table["variant"].unique()).items():
        rows = table[table["variant"] == variant]
        every = max(1, len(rows) // N_MARKERS)
        ax.plot(
            rows[x],
            rows[y],
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            markevery=every,
            label=look.label,
        )
        ax.fill_between(rows[x], rows["low"], rows["high"], color=look.color, alpha=0.15, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(table[x].min(), table[x].max()))
    return ax


def difference_marks(table: pd.DataFrame, label: str, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Difference of every variant's return to that of `label`, a group of lines per task; 0 is a tie.

    Columns task, variant, difference, low, high, as `stats.difference_table` gives them; no bar without an interval.
    """
    ax = ax or new_axes()
    styles, tasks = variant_styles(table["variant"].unique()), list(table["task"].unique())
    step = 0.8 / len(styles)
    for k, (name, look) in enumerate(styles.items()):
        rows = table[table["variant"] == name]
        y = np.array([tasks.index(task) for task in rows["task"]]) + (k - (len(styles) - 1) / 2) * step
        ends = np.abs(rows[["low", "high"]].to_numpy(dtype=float).T - rows["difference"].to_numpy(dtype=float))
        ax.errorbar(
            rows["difference"],
            y,
            xerr=np.nan_to_num(ends),
            fmt=look.marker,
            color=look.color,
            markersize=3.5,
            linewidth=1.2,
            label=look.label,
        )
    ax.axvline(0.0, color=GREY, linestyle=":", linewidth=0.9)
    ax.set_yticks(range(len(tasks)), [textwrap.fill(task, TASK_WIDTH) for task in tasks])
    ax.set(title=title, xlabel=f"return − return of {label}", ylim=(len(tasks) - 0.5, -0.5))
    ax.grid(axis="x", linewidth=0.3, color="0.85")
    return ax


def effect_marks(table: pd.DataFrame, ax: Axes, order: Sequence[str], *, title: str = "") -> Axes:
    """Difference of every variant's return to the reference's in one task, a line per variant in the given order.

    Columns variant, difference, low, high (`stats.difference_table`). A difference far beyond the others is a number at
    the edge: it would press them together.
    """
    styles, rows = variant_styles(order), table.set_index("variant").reindex(list(order))
    ends = rows[["difference", "low", "high"]].abs().max(axis=1)
    reach = 1.1 * float(ends[ends <= FAR * ends.median()].max())
    reach = reach if reach > 0 else 1.0  # nothing to compare, or nothing differs
    for y, (name, row) in enumerate(rows.iterrows()):
        look, at = method_style(str(name).split(" ")[0]), row["difference"]
        if abs(at) <= reach:
            ax.errorbar(at, y, xerr=_bar(row), fmt=look.marker, color=look.color, markersize=3.5, linewidth=1.2)
        elif at == at:
            place: dict[str, Any] = {"ha": "left" if at < 0 else "right", "va": "center", "textcoords": "offset points"}
            ax.plot(np.sign(at) * reach, y, marker="<" if at < 0 else ">", color=look.color, clip_on=False)
            ax.annotate(
                f"{at:.1f}".replace("-", "\N{MINUS SIGN}"),
                (np.sign(at) * reach, y),
                (-5 * np.sign(at), 0),
                fontsize=6.5,
                **place,
            )
    ax.axvline(0.0, color=GREY, linestyle=":", linewidth=0.9)
    ax.set_yticks(range(len(rows)), [styles[str(name)].label for name in rows.index], fontsize=6.5)
    ax.set(title=title, xlim=(-reach, reach), ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", linewidth=0.3, color="0.85")
    return ax


def _bar(row: pd.Series) -> np.ndarray:
    """Lengths of an error bar to both sides, 0 without an interval."""
    ends = np.array([row["difference"] - row["low"], row["high"] - row["difference"]], dtype=float)
    return np.nan_to_num(ends)[:, None]


def improvement_marks(table: pd.DataFrame, label: str, ax: Axes | None = None) -> Axes:
    """Probability that `label` beats each other variant, with its interval; 0.5 is a tie."""
    ax = ax or new_axes()
    styles = variant_styles(table["reference"])
    interval_marks(table.rename(columns={"reference": "variant", "probability": "value"}), ax, styles)
    ax.axvline(0.5, color=GREY, linestyle=":", linewidth=0.9)
    ax.set(xlabel=f"P({label} > other)", xlim=(-0.02, 1.02))
    ax.set_xticks(np.linspace(0, 1, 5))
    return ax
