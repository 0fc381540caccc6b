"""Figures of several panels, and curves; every function draws data it is given on `ax` (a new one if None)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from k24lab.analysis.similarity import ALL_LAYERS
from k24lab.analysis.stats import MIN_SEEDS
from k24lab.analysis.style import GREY, ROW_HEIGHT, TEXT_WIDTH, TITLE_LETTERS, LineStyle, variant_styles

N_MARKERS = 8  # on a line: enough to tell it in grey, few enough to see it
LAYER_MARKERS = "osD^vP<>"
BAND_ALPHA = 0.15
MOST_BANDS = 8  # in one panel: more would hide the lines and one another
END_STEP = 0.016  # of the time axis in a panel of text width, between two marks behind the ends of the lines
MOST_OF_AXIS = 0.3  # that all these marks take
LEGEND_LINE = 0.15  # inches, of 7 pt letters
NAME_ROOM = 0.08  # share of the axis that the name of the highest reference line takes above it


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


def shared_legend(fig: Figure) -> Figure:
    """One legend under all panels, each label once, in at most four columns; the figure grows by the legend's lines."""
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
    reason more than eight variants have no bands. To the right of the lines their ends stand side by side, each mean
    with its interval, so that lines that lie upon each other can be told apart.
    `log`: of the vertical axis.
    `references` are dotted horizontal lines with their names (bounds, chance). Give all panels of a figure the same
    `styles` (`style.variant_styles` of all their variants).
    """
    ax = ax or new_axes()
    styles = styles or variant_styles(curves["variant"])
    ends = curves["t_env"] == curves.groupby("variant")["t_env"].transform("max")
    shown = (curves["n"] >= MIN_SEEDS) & (ends | (curves["variant"].nunique() <= MOST_BANDS))
    curves = curves.assign(low=curves["low"].where(shown), high=curves["high"].where(shown))
    drawn = curves[curves["mean"] > 0] if log else curves
    band_lines(drawn, "t_env", "mean", ax, styles=styles)
    _ends_side_by_side(drawn[ends], ax, styles)
    if log:
        ax.set_yscale("log")
    elif not curves.empty:
        _limit_to_means(ax, curves)
    reference_lines(ax, references or {})
    ax.set_title(_title(ax, title, curves["n"].groupby(curves["variant"]).max()))
    time_axis(ax, ylabel)
    if not curves.empty:  # the ends side by side lie beyond the time of the runs
        times = curves["t_env"].min(), curves["t_env"].max()
        ax.set_xticks([tick for tick in ax.xaxis.get_major_locator().tick_values(*times) if tick <= times[1]])
    return ax


def band_lines(
    table: pd.DataFrame, x: str, y: str, ax: Axes | None = None, *, styles: Mapping[str, LineStyle] | None = None
) -> Axes:
    """A line per variant (columns variant, `x`, `y`), and a band where `low` and `high` are numbers.

    Every line has its markers at other points than the one before, so that lines upon each other show both.
    """
    ax = ax or new_axes()
    looks = styles or variant_styles(table["variant"])
    present = [name for name in looks if name in set(table["variant"])]
    for k, variant in enumerate(present):
        rows, look = table[table["variant"] == variant], looks[variant]
        every = max(len(rows) // N_MARKERS, min(len(present), len(rows) // 3), 1)
        (line,) = ax.plot(rows[x], rows[y], color=look.color, linestyle=look.linestyle, label=look.label)
        line.set(marker=look.marker, markevery=(k * max(1, every // len(present)) % every, every))
        ax.fill_between(rows[x], rows["low"], rows["high"], color=look.color, alpha=BAND_ALPHA, linewidth=0)
    return ax


def _ends_side_by_side(ends: pd.DataFrame, ax: Axes, styles: Mapping[str, LineStyle]) -> None:
    """The last mean of each variant and its interval, one beside the other behind the ends of the lines."""
    rows = ends.set_index("variant")
    names = [name for name in styles if name in rows.index]
    if len(names) < 2:
        return
    first, last = ax.dataLim.intervalx
    step = (last - first) * min(END_STEP * _columns(ax), MOST_OF_AXIS / len(names))
    ax.axvspan(last + step, last + (len(names) + 1.4) * step, color="0.95", zorder=0)  # no time
    for k, name in enumerate(names, start=1):
        row, look = rows.loc[name], styles[name]
        at = last + (k + 0.7) * step
        ax.vlines(at, row["low"], row["high"], color=look.color, linewidth=1.2)
        ax.plot(at, row["mean"], color=look.color, marker=look.marker, markersize=3, linestyle="none")


def _limit_to_means(ax: Axes, curves: pd.DataFrame, margin: float = 0.3) -> None:
    """Show the intervals, but no further from the means than `margin` of the range of all means."""
    bottom, top = curves["mean"].min(), curves["mean"].max()
    reach = margin * (top - bottom) or 1.0
    pad = 0.04 * ((top - bottom) or max(abs(top), 1.0))  # a flat line is no error
    low, high = np.fmin(curves["low"].min(), bottom), np.fmax(curves["high"].max(), top)
    ax.set_ylim(max(low - pad, bottom - reach), min(high + pad, top + reach))


def _title(ax: Axes, title: str, n_seeds: pd.Series) -> str:
    """The title with `n = 3 seeds` or `n = 2-5 seeds`, in a second line where it would run into the next panel's."""
    if n_seeds.empty:
        return title
    low, high = n_seeds.min(), n_seeds.max()
    seeds = f"n = {low}-{high} seeds" if low < high else f"n = {high} seed{'s' if high > 1 else ''}"
    width = TITLE_LETTERS // _columns(ax)
    between = "" if not title else ", " if len(title) + len(seeds) + 2 <= width else ",\n"
    return title + between + seeds


def _columns(ax: Axes) -> int:
    """Panels side by side in the figure."""
    place = ax.get_subplotspec()
    return place.get_gridspec().ncols if place else 1


def reference_lines(ax: Axes, references: Mapping[str, float]) -> Axes:
    """Dotted grey horizontal lines, each with its name above its right end; the axis grows to hold both."""
    if references:
        low, high = ax.get_ylim()
        low, top = min(low, *references.values()), max(references.values())
        room = NAME_ROOM * (max(high, top) - low) if ax.get_yscale() == "linear" else 0.0
        ax.set_ylim(low, max(high, top + room))
    for name, value in references.items():
        ax.axhline(value, color=GREY, linestyle=":", linewidth=0.9, zorder=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        text = ax.annotate(name, (1.0, value), (0, 1.5), ha="right", va="bottom", color="0.35", fontsize=6.5, **place)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])  # legible upon a line
    return ax


def time_axis(ax: Axes, ylabel: str) -> Axes:
    """Label the axes of a curve over env steps."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set(xlabel="env steps", ylabel=ylabel)
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

    `table` is what `mask_tables.snapshot_table` returns (columns t_env, layer and `value`).
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
