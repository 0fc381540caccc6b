"""Curves and comparisons; every function draws data it is given on `ax` (a new one if None) and returns it."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from k24lab.analysis.similarity import ALL_LAYERS
from k24lab.analysis.stats import mean_interval
from k24lab.analysis.style import GREY, ROW_HEIGHT, TEXT_WIDTH, LineStyle, variant_styles

N_MARKERS = 8  # on a line: enough to tell it in grey, few enough to see it
LAYER_MARKERS = "osD^vP<>"
SEEDS_OF_AN_INTERVAL = 3  # that is drawn: of two it is nine times their standard deviation to either side
MOST_BANDS = 8  # in one panel: more would hide the lines and one another
WHISKER_STEP = 0.012  # of the time axis, between two intervals at its end
LABEL_WIDTH = 44  # letters of a label beside an axis, before a second line
TITLE_WIDTH = 102  # letters of a title over the width of the text
LEGEND_LINE = 0.15  # inches, of 7 pt letters


def new_axes(height: float = ROW_HEIGHT, width: float = TEXT_WIDTH) -> Axes:
    """Axes of a figure of their own, in inches."""
    ax: Axes = plt.subplots(figsize=(width, height))[1]
    return ax


def panels(n: int, n_columns: int = 3, height: float | Sequence[float] = ROW_HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure of text width with `n` panels, at most `n_columns` in a line; `height` of the lines in inches."""
    n_columns = min(n, n_columns)
    n_lines = -(-n // n_columns)
    heights = [height] * n_lines if isinstance(height, int | float) else list(height)
    size = (TEXT_WIDTH, sum(heights))
    fig, grid = plt.subplots(n_lines, n_columns, figsize=size, squeeze=False, height_ratios=heights)
    for spare in grid.flat[n:]:
        spare.set_axis_off()
    return fig, list(grid.flat[:n])


def learning_curves(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str = "",
    ylabel: str = "test return",
    references: Mapping[str, float] | None = None,
    styles: Mapping[str, LineStyle] | None = None,
    log: bool = False,
) -> Axes:
    """Mean line and 95 % band per variant of one task, over env steps; the title says the number of seeds.

    `curves` is what `stats.curves` returns (columns variant, t_env, mean, low, high, n). Two seeds have no band,
    and one far wider than the range of the means is cut by the panel's edge, to keep the lines readable; for the same
    reason more than eight variants have bars with the intervals of their last points, to the right, in place of bands.
    `log`: of the vertical axis.
    `references` are dotted horizontal lines with their names (bounds, chance). Give all panels of a figure the same
    `styles` (`style.variant_styles` of all their variants).
    """
    ax = ax or new_axes()
    styles = styles or variant_styles(curves["variant"])
    crowded = curves["variant"].nunique() > MOST_BANDS
    if crowded:
        at_end = curves["t_env"] == curves.groupby("variant")["t_env"].transform("max")
        curves = curves.assign(low=curves["low"].where(at_end), high=curves["high"].where(at_end))
    drawn = curves[curves["mean"] > 0] if log else curves
    for variant, style in styles.items():
        rows = drawn[drawn["variant"] == variant]
        if not rows.empty:
            _line_with_band(rows, ax, style)
    if crowded:
        _whiskers_at_the_end(drawn, ax, styles)
    if log:
        ax.set_yscale("log")
    else:
        _limit_to_means(ax, curves)
    reference_lines(ax, references or {})
    ax.set_title(_title(ax, title, seed_count(curves.groupby("variant")["n"].max())))
    return time_axis(ax, ylabel)


def _title(ax: Axes, *parts: str) -> str:
    """In one line, or a line each where that would run into the next panel's title."""
    place = ax.get_subplotspec()
    n_columns = place.get_gridspec().ncols if place else 1
    found = [part for part in parts if part]
    line = ", ".join(found)
    return line if len(line) <= TITLE_WIDTH // n_columns else ",\n".join(found)


def _line_with_band(rows: pd.DataFrame, ax: Axes, style: LineStyle) -> None:
    line: dict[str, Any] = {
        "color": style.color,
        "linestyle": style.linestyle,
        "marker": style.marker,
        "label": style.label,
    }
    ax.plot(rows["t_env"], rows["mean"], markevery=max(1, len(rows) // N_MARKERS), **line)
    band = rows[rows["n"] >= SEEDS_OF_AN_INTERVAL]
    ax.fill_between(band["t_env"], band["low"], band["high"], color=style.color, alpha=0.2, linewidth=0)


def _whiskers_at_the_end(curves: pd.DataFrame, ax: Axes, styles: Mapping[str, LineStyle]) -> None:
    """The interval of each variant's last point, side by side behind the ends of the lines."""
    ends = curves[(curves["n"] >= SEEDS_OF_AN_INTERVAL) & curves["low"].notna()].set_index("variant")
    step = WHISKER_STEP * (curves["t_env"].max() - curves["t_env"].min())
    for k, name in enumerate([name for name in styles if name in ends.index], start=1):
        row = ends.loc[name]
        ax.vlines(row["t_env"] + k * step, row["low"], row["high"], color=styles[name].color, linewidth=1.2)


def _limit_to_means(ax: Axes, curves: pd.DataFrame, margin: float = 0.3) -> None:
    """Show the bands, but no further from the means than `margin` of the range of all means."""
    if curves.empty:
        return
    bottom, top = curves["mean"].min(), curves["mean"].max()
    reach = margin * (top - bottom) or 1.0
    bands = curves[curves["n"] >= SEEDS_OF_AN_INTERVAL]
    low, high = bands["low"].min(), bands["high"].max()
    pad = 0.04 * ((top - bottom) or max(abs(top), 1.0))  # a flat line is no error
    ax.set_ylim(max(np.nanmin([low, bottom]) - pad, bottom - reach), min(np.nanmax([high, top]) + pad, top + reach))


def seed_count(counts: Iterable[int]) -> str:
    """`n = 3 seeds`, or `n = 2-5 seeds` where variants differ; empty for no variants."""
    low, high = min(counts, default=0), max(counts, default=0)
    if high == 0:
        return ""
    return f"n = {high} seed{'s' if high > 1 else ''}" if low == high else f"n = {low}-{high} seeds"


def reference_lines(ax: Axes, references: Mapping[str, float]) -> Axes:
    """Dotted grey horizontal lines, each with its name at the end where it hides least; the axis grows to hold them."""
    for value in references.values():
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, value), max(high, value))
    for name, value in references.items():
        side, above = _free_place(ax, value, width=0.02 * len(name))
        look: dict[str, Any] = {"ha": side, "va": "bottom" if above else "top", "color": GREY, "fontsize": 6.5}
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate(name, (float(side == "right"), value), (0, 1.5 if above else -1.5), **place, **look)
    for value in references.values():
        ax.axhline(value, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
    return ax


def _free_place(ax: Axes, value: float, width: float, height: float = 0.1) -> tuple[Literal["left", "right"], bool]:
    """Where a text at the height `value` meets the fewest lines: side of the axes, and whether above the value.

    `width` and `height` of the text are shares of the axes; among equals right comes before left, above before below.
    """
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x = np.linspace(left, right, 101)
    lines = [np.asarray(line.get_xydata(), dtype=float).reshape(-1, 2) for line in ax.get_lines()]
    y = np.array([np.interp(x, line[:, 0], line[:, 1], np.nan, np.nan) for line in lines if len(line)]).reshape(
        -1, x.size
    )
    share = (y - value) / (high - low)
    hits: dict[tuple[Literal["left", "right"], bool], int] = {}
    for above, band in ((True, (share > -0.01) & (share < height)), (False, (share < 0.01) & (share > -height))):
        hits["right", above] = int(band[:, x >= right - width * (right - left)].sum())
        hits["left", above] = int(band[:, x <= left + width * (right - left)].sum())
    return min(hits, key=hits.__getitem__)


def time_axis(ax: Axes, ylabel: str) -> Axes:
    """Label the axes of a curve over env steps."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("env steps")
    ax.set_ylabel(ylabel)
    return ax


def shared_legend(fig: Figure) -> Figure:
    """One legend under all panels, each label once, in as many columns (at most four) as the width holds.

    The figure grows by the legend's lines.
    """
    entries: dict[str, Any] = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        widest = 0.55 + 0.05 * max(map(len, entries))  # inches: the line sample, and 7 pt letters
        fits = min(4, max(1, int(fig.get_figwidth() / widest)))
        ncols = -(-len(entries) // -(-len(entries) // fits))  # lines of about equal length
        fig.set_figheight(fig.get_figheight() + LEGEND_LINE * -(-len(entries) // ncols))  # the panels keep theirs
        fig.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=ncols, handlelength=3)
    return fig


def final_returns(
    scores: pd.DataFrame,
    value: str = "test_return_mean",
    ax: Axes | None = None,
    *,
    title: str = "",
    xlabel: str = "final test return",
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Mean and 95 % interval (from three seeds on) per variant of one task, best on top; every seed is an open dot.

    `scores` has a row per run with the columns variant and `value`. `references` are dotted vertical lines.
    """
    scores = scores.dropna(subset=[value])
    order = scores.groupby("variant")[value].mean().sort_values().index.tolist()
    ax = ax or new_axes(height=0.5 + 0.28 * len(order))
    styles = variant_styles(order)
    for y, variant in enumerate(order):
        seeds, style = scores.loc[scores["variant"] == variant, value].to_numpy(dtype=float), styles[variant]
        mean, low, high, _ = (x.item() for x in mean_interval(seeds))
        if seeds.size >= SEEDS_OF_AN_INTERVAL:
            ax.plot([low, high], [y, y], color=style.color, linewidth=2, solid_capstyle="butt")
        ax.plot(mean, y, color=style.color, marker=style.marker, markersize=5, linestyle="none")
        dots: dict[str, Any] = {"s": 9, "facecolors": "none", "edgecolors": style.color, "linewidths": 0.7}
        ax.scatter(seeds, np.full(seeds.size, y - 0.27), **dots)
    for name, at in (references or {}).items():
        ax.axvline(at, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
        ax.annotate(
            name, (at, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=GREY, fontsize=6.5
        )
    counts = scores["variant"].value_counts()
    labels = [
        textwrap.fill(f"{styles[v].label} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{counts[v]})", LABEL_WIDTH)
        for v in order
    ]
    ax.set_yticks(range(len(order)), labels)
    ax.set_ylim(-0.6, len(order) - 0.5)
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=12 if references else None)  # above the names of the references
    return ax


def layer_lines(
    table: pd.DataFrame,
    value: str,
    ax: Axes | None = None,
    *,
    ylabel: str = "",
    references: Mapping[str, float] | None = None,
) -> Axes:
    """A quantity of the masks over training, one line per layer, all layers together in black.

    `table` is what `similarity.snapshot_table` returns (columns t_env, layer and `value`).
    """
    ax = ax or new_axes()
    layers = [layer for layer in table["layer"].unique() if layer != ALL_LAYERS]
    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.85, len(layers)))
    looks = {layer: (color, mark, 1.0) for layer, color, mark in zip(layers, colors, LAYER_MARKERS * 4, strict=False)}
    for layer, (color, marker, width) in {**looks, ALL_LAYERS: ("black", "", 2.0)}.items():
        rows = table[table["layer"] == layer].dropna(subset=[value])
        every = max(1, len(rows) // N_MARKERS)
        label = "all layers" if layer == ALL_LAYERS else layer
        ax.plot(rows["t_env"], rows[value], color=color, marker=marker, linewidth=width, markevery=every, label=label)
    reference_lines(ax, references or {})
    return time_axis(ax, ylabel or value)


def pair_scatter(
    pairs: pd.DataFrame,
    x: str,
    y: str,
    ax: Axes | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    chance: float | None = None,
) -> Axes:
    """A dot per pair of agents (of every run): columns variant, `x`, `y`; colour and marker tell the variant.

    `chance` is the value of x for independent masks, a dotted vertical line.
    """
    ax = ax or new_axes(height=2.2)
    for variant, style in variant_styles(pairs["variant"]).items():
        rows = pairs[pairs["variant"] == variant]
        look: dict[str, Any] = {"color": style.color, "marker": style.marker, "label": style.label}
        ax.scatter(rows[x], rows[y], s=14, alpha=0.7, linewidths=0, **look)
    if chance is not None:
        ax.axvline(chance, color=GREY, linestyle=":", linewidth=0.9, zorder=1, label="independent masks")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y)
    return ax
