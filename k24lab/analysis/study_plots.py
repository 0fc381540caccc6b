"""Figures of the layer-level studies in 01_masks."""

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from k24lab.analysis.curve_plots import new_axes
from k24lab.analysis.stats import mean_interval
from k24lab.analysis.style import OKABE_ITO, method_style
from k24lab.core.pattern_table import PATTERN_NAMES

CHANCE_REDRAW = 5 / 6


def probability_curves(
    temperatures: Float[np.ndarray, " T"], probs: Float[np.ndarray, "T 6"], ax: Axes | None = None
) -> Axes:
    """Probability of each pattern of one group against temperature (log axis, high temperatures left)."""
    ax = ax or new_axes()
    colors = list(OKABE_ITO.values())
    for p, name in enumerate(PATTERN_NAMES):
        ax.plot(temperatures, probs[:, p], color=colors[p], linestyle=("-", "--", ":")[p % 3], label=name)
    ax.axhline(1 / len(PATTERN_NAMES), color="0.5", linewidth=0.8)
    ax.set(xlabel="temperature τ", ylabel="pattern probability", ylim=(-0.03, 1.03))
    _temperature_axis(ax)
    ax.legend(title="pattern", ncols=2)
    return ax


def redraw_lines(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of groups that change between two draws against temperature, a line per kind of noise."""
    ax = ax or new_axes()
    styles = {"literal": method_style("k24-literal"), "annealed": method_style("k24")}
    for noise, group in table.groupby("noise", sort=False):
        look = styles[str(noise)]
        (line,) = ax.plot(group["temperature"], group["redraw_share"], color=look.color, label=str(noise))
        line.set(marker=look.marker, linestyle=look.linestyle)
    ax.axhline(CHANCE_REDRAW, color="0.5", linewidth=0.8, linestyle=":")
    ax.annotate("chance: 5/6", (0.99, CHANCE_REDRAW - 0.03), xycoords=("axes fraction", "data"), ha="right", va="top")
    ax.set(xlabel="temperature τ", ylabel="groups redrawn (share)", ylim=(-0.03, 0.95))
    _temperature_axis(ax)
    ax.legend(title="draw", loc="lower left")
    return ax


def _temperature_axis(ax: Axes) -> None:
    """High temperatures left, as in training; plain numbers."""
    ax.set_xscale("log")
    ax.set_xticks([10, 5, 2, 1, 0.5, 0.2, 0.1], ["10", "5", "2", "1", "0.5", "0.2", "0.1"])
    ax.minorticks_off()
    low, high = ax.get_xlim()
    ax.set_xlim(max(low, high), min(low, high))


def error_bars(table: pd.DataFrame, ax: Axes | None = None, reference: str = "dense") -> Axes:
    """Geometric mean of the error and its 95 % interval per method (log axis), every seed a dot.

    A dotted line marks the mean of `reference`.
    """
    ax = ax or new_axes()
    groups = list(table.groupby("method", sort=False)["error"])
    for y, (_, errors) in enumerate(groups):
        estimate = mean_interval(np.log(errors.to_numpy())[:, None])
        mean, low, high = (float(np.exp(v[0])) for v in (estimate.mean, estimate.low, estimate.high))
        ax.plot([low, high], [y, y], color="black", linewidth=1)
        ax.plot(errors, np.full(len(errors), y), "o", color="0.4", markersize=4, fillstyle="none")
        ax.plot(mean, y, "D", color="black", markersize=3.5)
        if str(groups[y][0]) == reference:
            ax.axvline(mean, color="0.5", linestyle=":", linewidth=0.8)
    ax.set(xscale="log", xlabel="mean squared error / variance of the targets")
    ax.set_yticks(range(len(groups)), [str(name) for name, _ in groups])
    ax.invert_yaxis()
    return ax
