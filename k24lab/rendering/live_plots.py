"""Curves of runs that still train; data in, figure out."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k24lab.analysis.curve_plots import new_axes, shared_legend, time_axis
from k24lab.analysis.style import GREY, ROW_HEIGHT, SCREEN_DPI, TEXT_WIDTH, variant_styles

MOST_COLUMNS = 3  # of panels, one per task
ONE_PANEL = 2.3  # inches, high


def live_figure(curves: pd.DataFrame, baseline: pd.DataFrame, t_max: dict[str, int], ylabel: str) -> Figure:
    """A panel per task of `t_max` (task -> env steps that its runs will take), in a figure that pyplot does not keep.

    Args:
        curves: of the runs, columns task, variant, run, t_env, value.
        baseline: what `stats.curves` returns (task, variant, t_env, mean, ...), drawn in grey; may be empty.
        t_max: by task.
        ylabel: name of the metric.
    """
    n_columns = min(len(t_max), MOST_COLUMNS)
    n_lines = -(-len(t_max) // n_columns)
    height = ONE_PANEL if n_lines == 1 else n_lines * ROW_HEIGHT
    fig = Figure(figsize=(TEXT_WIDTH, height), dpi=SCREEN_DPI, layout="constrained")
    grid = fig.subplots(n_lines, n_columns, squeeze=False)
    for spare in grid.flat[len(t_max) :]:
        spare.set_axis_off()
    for ax, (task, end) in zip(grid.flat, t_max.items(), strict=False):
        own, base = (table[table["task"] == task] for table in (curves, baseline))
        run_curves(own, ax, t_max=end, title=task, ylabel=ylabel, baseline=base)
    return shared_legend(fig)


def run_curves(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    t_max: int,
    title: str = "",
    ylabel: str = "test return",
    baseline: pd.DataFrame | None = None,
) -> Axes:
    """A line per run with a dot at its end, over the env steps that it will have: seeds of a variant look alike.

    `curves` has the columns variant, run, t_env, value; `baseline` variant, t_env and mean, in grey behind them.
    """
    ax = ax or new_axes()
    base = pd.DataFrame(columns=["variant", "t_env", "mean"]) if baseline is None else baseline
    for variant, style in variant_styles(base["variant"]).items():
        rows = base[base["variant"] == variant]
        look: dict[str, Any] = {"color": GREY, "linestyle": style.linestyle, "linewidth": 1.0}
        ax.plot(rows["t_env"], rows["mean"], label=f"baseline: {style.label}", **look)
    for variant, style in variant_styles(curves["variant"]).items():
        look = {"color": style.color, "linestyle": style.linestyle, "linewidth": 1.2}
        for k, (_, rows) in enumerate(curves[curves["variant"] == variant].groupby("run", sort=False)):
            ax.plot(rows["t_env"], rows["value"], label="" if k else style.label, **look)
            ax.plot(rows["t_env"].iloc[-1], rows["value"].iloc[-1], color=style.color, marker="o", markersize=3)
    ax.set_xlim(0, t_max)
    ax.set_title(title)
    return time_axis(ax, ylabel)
