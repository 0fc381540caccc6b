"""What training costs: milliseconds against team size, and where an update's time goes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k24lab.analysis.curve_plots import new_axes
from k24lab.analysis.style import GREY, OKABE_ITO, TEXT_WIDTH

_PART_COLORS = [OKABE_ITO[k] for k in ("orange", "sky", "blue", "green", "vermillion", "purple", "yellow")]
_PART_HATCHES = ("", "////", "", "....", "", "\\\\\\\\", "")
LINES = (("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", "-."), ("black", "X", ":"))


def cost_per_agent(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Milliseconds of a learner update per agent against the number of agents; flat lines scale.

    `table`: columns variant, n_agents, ms.
    """
    ax = ax or new_axes()
    for (variant, rows), (color, marker, dashes) in zip(table.groupby("variant", sort=False), LINES, strict=False):
        ax.plot(
            rows["n_agents"],
            rows["ms"] / rows["n_agents"],
            color=OKABE_ITO[color],
            marker=marker,
            linestyle=dashes,
            label=str(variant),
        )
    ax.set_xscale("log")
    agents = sorted(set(table["n_agents"]))
    ax.set_xticks(agents, [str(n) for n in agents])
    ax.minorticks_off()
    highest = (table["ms"] / table["n_agents"]).max()
    ax.set(xlabel="number of agents", ylabel="ms per update and agent", ylim=(0, 1.1 * highest))
    ax.legend(loc="lower center", ncols=4)
    return ax


def part_bars(table: pd.DataFrame, parts: Sequence[str], ax: Axes | None = None) -> Axes:
    """Milliseconds of each part of an update, a stacked bar per variant, and the ratio to the first variant.

    `table`: columns variant, ms, ratio, and a share per part.
    """
    ax = ax or new_axes()
    left = pd.Series(0.0, index=table.index)
    for part, color, hatch in zip(parts, _PART_COLORS, _PART_HATCHES, strict=False):
        width = table[part] * table["ms"]
        ax.barh(
            table["variant"], width, left=left, color=color, hatch=hatch, edgecolor="white", linewidth=0.4, label=part
        )
        left = left + width
    for y, (ms, ratio) in enumerate(zip(table["ms"], table["ratio"], strict=True)):
        ax.annotate(f"{ratio:.2f}x", (ms, y), (3, 0), textcoords="offset points", va="center", color=GREY, fontsize=7)
    ax.invert_yaxis()
    ax.set(xlabel="ms per update", xlim=(0, 1.12 * table["ms"].max()))
    return ax


def bench_figure(updates: Mapping[str, pd.DataFrame], teams: pd.DataFrame, parts: Sequence[str]) -> Figure:
    """All of `k24lab bench train`: bars of the parts for every shape, and the cost per agent.

    Args:
        updates: a table for `part_bars` by the name of its shape.
        teams: for `cost_per_agent`.
        parts: names of the columns with shares.
    """
    fig, axes = plt.subplots(len(updates) + 1, 1, figsize=(TEXT_WIDTH, 2.0 * len(updates) + 1.9), layout="constrained")
    for ax, (name, table) in zip(axes, updates.items(), strict=False):
        part_bars(table, parts, ax).set_title(name)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    cost_per_agent(teams, axes[-1])
    return fig
