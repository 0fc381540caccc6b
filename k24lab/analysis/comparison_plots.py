"""Variants side by side; every function draws data it is given on `ax` (a new one if None) and returns it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from k24lab.analysis.curve_plots import new_axes
from k24lab.analysis.load import RETURN
from k24lab.analysis.stats import drawn_interval
from k24lab.analysis.style import GREY, LineStyle, method_style, variant_styles

LABEL_WIDTH = 44  # letters of a label beside an axis, before a second line
TITLE_WIDTH = 12  # letters of an aggregate's name, before a second line
TASK_WIDTH = 30  # letters of a task beside an axis, before a second line
NEAR = 0.25  # of the width of what a panel shows: references within are drawn, others are only named
FAR = 6.0  # times the median length: further differences are numbers


def final_height(variants: pd.Series) -> float:
    """The height in inches of `final_returns`, at which long labels do not touch; `variants` has an entry per run."""
    labels = _with_runs(variants)
    lines = max((label.count("\n") + 1 for label in labels.values()), default=1)
    return 0.6 + max(0.31, 0.165 * lines) * len(labels)


def _with_runs(variants: pd.Series) -> dict[str, str]:
    """The label of every variant, with its number of runs, in lines."""
    counts, n = variants.value_counts(), "(n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{})"
    looks = variant_styles(counts.index).items()
    return {name: textwrap.fill(f"{look.label} {n.format(counts[name])}", LABEL_WIDTH) for name, look in looks}


def final_returns(
    scores: pd.DataFrame,
    value: str = RETURN,
    ax: Axes | None = None,
    *,
    title: str = "",
    xlabel: str = "final test return",
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Mean and 95 % interval (from three seeds on) per variant of one task, best on top; every seed is an open dot.

    `scores` has a row per run with the columns variant and `value`. `references` are dotted vertical lines; one far
    from all runs is named under the axis, with its value: it would press the runs together.
    """
    scores = scores.dropna(subset=[value])
    order = scores.groupby("variant")[value].mean().sort_values(ascending=False).index
    styles, labels = variant_styles(order), _with_runs(scores["variant"])
    ax = ax or new_axes(height=final_height(scores["variant"]))
    colors, marks = [styles[v].color for v in order], [styles[v].marker for v in order]
    names = {"y": "variant", "hue": "variant", "order": order, "hue_order": order, "legend": False}
    looks = {"palette": colors, "markers": marks, "markersize": 5, "linestyle": "none"}
    bars = {"linewidth": 2, "solid_capstyle": "butt"}
    seaborn.pointplot(scores, x=value, **names, **looks, errorbar=drawn_interval, err_kws=bars, ax=ax)
    for y, (variant, color) in enumerate(zip(order, colors, strict=True)):
        seeds = scores.loc[scores["variant"] == variant, value]
        ax.scatter(seeds, np.full(len(seeds), y + 0.27), s=9, facecolors="none", edgecolors=color, linewidths=0.7)
    far = vertical_references(ax, references or {})
    ax.set_yticks(range(len(order)), [labels[v] for v in order])
    ax.set(xlabel=xlabel + far, ylabel="", ylim=(len(order) - 0.4, -0.5))
    ax.set_title(title, pad=12 if references else None)  # above the names of the references
    return ax


def vertical_references(ax: Axes, references: Mapping[str, float]) -> str:
    """Dotted lines with their names above the panel; returns what to say of those that are far from what it shows."""
    low, high = ax.get_xlim()
    reach, far = NEAR * (high - low), []
    for name, at in references.items():
        if not low - reach <= at <= high + reach:
            far.append(f"{name} {at:.2f}".replace("-", "\N{MINUS SIGN}"))
            continue
        ax.axvline(at, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        ax.annotate(name, (at, 1.0), **place, color="0.35", size=6.5)
    return f" (outside: {', '.join(far)})" if far else ""


def pair_scatter(pairs: pd.DataFrame, x: str, y: str, ax: Axes | None = None, *, chance: float | None = None) -> Axes:
    """A dot per pair of agents (of every run): columns variant, `x`, `y`; colour and marker tell the variant.

    `chance` is the value of x for independent masks, a dotted vertical line.
    """
    ax = ax or new_axes(height=2.2)
    styles = variant_styles(pairs["variant"])
    names = pairs["variant"].map({variant: look.label for variant, look in styles.items()}).rename("")
    colors = {look.label: look.color for look in styles.values()}
    marks = {look.label: look.marker for look in styles.values()}
    dots: dict[str, Any] = {"palette": colors, "markers": marks, "s": 14, "alpha": 0.7, "linewidth": 0}
    if not pairs.empty:
        seaborn.scatterplot(pairs, x=x, y=y, hue=names, style=names, ax=ax, **dots)
    if chance is not None:
        ax.axvline(chance, color=GREY, linestyle=":", linewidth=0.9, zorder=1, label="independent masks")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def interval_marks(
    table: pd.DataFrame, value: str, ax: Axes, styles: Mapping[str, LineStyle], *, title: str = ""
) -> Axes:
    """A mark and its interval per variant (columns variant, `value`, low, high), in the order of `styles`."""
    names = [name for name in styles if name in set(table["variant"])]
    rows = table.set_index("variant").loc[names]
    for y, name in enumerate(names):
        _marks(rows.loc[[name]], value, [y], ax, styles[name])
    _lines_of(ax, [styles[name].label for name in names])
    ax.set_title(title)
    return ax


def _marks(rows: pd.DataFrame, value: str, y: ArrayLike, ax: Axes, look: LineStyle, height: float = 6.0) -> None:
    """A mark per row on a pale bar from `low` to `high`, `height` in points; no bar without an interval."""
    bars = np.abs(rows[["low", "high"]].to_numpy(dtype=float).T - rows[value].to_numpy(dtype=float))
    mark: dict[str, Any] = {"fmt": look.marker, "color": look.color, "markersize": 3.5, "markeredgewidth": 0}
    bar: dict[str, Any] = {"ecolor": (look.color, 0.35), "elinewidth": height}
    ax.errorbar(rows[value], y, xerr=np.nan_to_num(bars), label=look.label, **mark, **bar)


def _lines_of(ax: Axes, labels: Sequence[str]) -> None:
    """A line of the panel for each label, the first on top."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x", linewidth=0.3, color="0.85")


def aggregate_panels(table: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """A panel per aggregate (`aggregate.aggregates`); the names of the variants stand at the first alone."""
    styles = variant_styles(table["variant"].unique())
    for k, (ax, name) in enumerate(zip(axes, table["aggregate"].unique(), strict=True)):
        rows = table[table["aggregate"] == name]
        interval_marks(rows, "value", ax, styles, title=textwrap.fill(str(name), TITLE_WIDTH))
        if k:
            ax.set_yticklabels([])


def difference_marks(table: pd.DataFrame, label: str, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Difference of every variant's return to that of `label`, a group of lines per task; 0 is a tie.

    Columns task, variant, difference, low, high, as `stats.difference_table` gives them; no bar without an interval.
    """
    ax = ax or new_axes()
    styles, tasks = variant_styles(table["variant"].unique()), list(table["task"].unique())
    for k, (name, look) in enumerate(styles.items()):
        rows = table[table["variant"] == name]
        shift = 0.8 * (k - (len(styles) - 1) / 2) / len(styles)
        _marks(rows, "difference", [tasks.index(task) + shift for task in rows["task"]], ax, look, height=3.0)
    ax.axvline(0.0, color=GREY, linestyle=":", linewidth=0.9)
    _lines_of(ax, [textwrap.fill(task, TASK_WIDTH) for task in tasks])
    ax.set(title=title, xlabel=f"return − return of {label}")
    return ax


def effect_marks(table: pd.DataFrame, ax: Axes, order: Sequence[str], *, title: str = "") -> Axes:
    """Difference of every variant's return to the reference's in one task, a line per variant in the given order.

    Columns variant, difference, low, high (`stats.difference_table`). A difference far beyond the others is a number at
    the edge: it would press them together.
    """
    rows, labels = table.set_index("variant").reindex(list(order)), variant_styles(order)
    place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 6.5}
    ends = rows[["difference", "low", "high"]].abs().max(axis=1)
    reach = 1.1 * float(ends[ends <= FAR * ends.median()].max())
    reach = reach if reach > 0 else 1.0  # nothing to compare, or nothing differs
    for y, name in enumerate(order):
        at = float(rows["difference"].to_numpy(dtype=float)[y])
        if not np.isnan(at):
            _marks(rows.loc[[name]], "difference", [y], ax, method_style(name.split(" ")[0]))
        if abs(at) > reach:
            number, side = f"{at:.1f}".replace("-", "\N{MINUS SIGN}"), np.sign(at)
            ax.annotate(number, (side * reach, y), (-5 * side, 0), ha="right" if side > 0 else "left", **place)
    ax.axvline(0.0, color=GREY, linestyle=":", linewidth=0.9)
    _lines_of(ax, [labels[name].label for name in order])
    ax.tick_params(axis="y", labelsize=6.5)
    ax.set(title=title, xlim=(-reach, reach))
    return ax
