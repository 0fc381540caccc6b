"""What inference costs: counted, measured and published times and bytes.

The tables come from `k24lab.inference.costs` and `k24lab.bench`; column `form` names the implementation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from k24lab.analysis.curve_plots import new_axes, panels, shared_legend
from k24lab.analysis.style import GREY, OKABE_ITO

LINES = (("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", "-."), ("black", "X", ":"))
SPEEDUP_TICKS = (0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)
LIMIT = 2.0  # of log2 of a speedup on the colour scale, which ends at 4x and at a quarter
SPARSE = ("2:4", "2:4, columns")  # the two 2:4 kernels: for few rows, for many
SHOWN_BATCHES = (1, 8, 256)


def lines_over_agents(
    table: pd.DataFrame, value: str, lines: str, ax: Axes | None = None, *, label: str = "{}", title: str = ""
) -> Axes:
    """A quantity against the number of agents (column n_agents), a line for each value of the column `lines`."""
    ax = ax or new_axes()
    for (name, rows), (color, marker, dashes) in zip(table.groupby(lines, sort=False), LINES, strict=False):
        look: dict[str, Any] = {"color": OKABE_ITO[color], "marker": marker, "linestyle": dashes}
        ax.plot(rows["n_agents"], rows[value], label=label.format(name), **look)
    agents = sorted(set(table["n_agents"]))
    ax.set_xscale("log")
    ax.set_xticks(agents, [f"{n:g}" for n in agents])
    ax.minorticks_off()
    ax.set(title=title, xlabel="agents")
    return ax


def speedup_over_agents(
    table: pd.DataFrame, value: str, ax: Axes, *, title: str = "", ylabel: str = "2:4 over dense"
) -> Axes:
    """A speedup against the number of agents, a line per hidden size (`width`); above the dotted line is faster."""
    lines_over_agents(table, value, "width", ax, label="hidden size {}", title=title)
    ax.axhline(1.0, color=GREY, linestyle=":", linewidth=0.9)
    ax.set(xlabel="agents, a mask each", ylabel=ylabel, ylim=(0, 1.1 * max(1.0, table[value].max())))
    return ax


def team_memory(memory: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Kilobytes (1000 bytes) of a team's weights against the number of agents, a line per way to store them.

    `memory`: columns storage, n_agents, bytes (`costs.team_memory`).
    """
    ax = lines_over_agents(memory.assign(kilobytes=memory["bytes"] / 1e3), "kilobytes", "storage", ax)
    ax.set(yscale="log", ylabel="weights of the team (kB)")
    ax.yaxis.set_major_formatter("{x:g}")
    return ax


def crossover_map(table: pd.DataFrame, value: str, ax: Axes, *, title: str = "") -> Axes:
    """A speedup per width (lines) and batch (columns), as colour and number; blank where it was not measured.

    `table`: columns width, batch and `value`. Blue is faster, red slower, white a tie.
    """
    grid = table.pivot(index="width", columns="batch", values=value).sort_index(ascending=False)
    look = {"cmap": "RdBu", "vmin": -LIMIT, "vmax": LIMIT, "cbar": False, "annot_kws": {"fontsize": 6.5}}
    sns.heatmap(np.log2(grid), annot=grid, fmt=".1f", ax=ax, **look)
    ax.tick_params(rotation=0)
    ax.set(title=title, xlabel="batch", ylabel="layer width")
    return ax


def published_speedups(published: pd.DataFrame, claim: tuple[float, float], ax: Axes) -> Axes:
    """Speedups of `bench.inference.published_points`, one row each; the band is what the original design claims."""
    names = published["case"] + " (" + published["device"] + ", " + published["timing"] + ")"
    table = published.assign(case=names)
    sns.scatterplot(table, x="speedup", y="case", hue="device", style="device", ax=ax, palette="dark:black", zorder=3)
    ax.axvline(1.0, color=GREY, linewidth=0.6, zorder=0)
    label = f"original design: {claim[0]:g}–{claim[1]:g}×"
    ax.axvspan(*claim, color=OKABE_ITO["yellow"], alpha=0.35, linewidth=0, label=label, zorder=0)
    ax.set(xscale="log", xlabel="speedup (dense / 2:4 time)", ylabel="")
    ax.set_xticks(SPEEDUP_TICKS, [f"{tick:g}" for tick in SPEEDUP_TICKS])
    ax.minorticks_off()
    ax.legend(loc="lower left")
    return ax


def fastest_sparse(table: pd.DataFrame) -> pd.DataFrame:
    """Of each case the row of the faster 2:4 kernel."""
    rows = table[table["form"].isin(SPARSE)]
    return rows.loc[rows.groupby(["width", "n_agents", "batch"])["us"].idxmin()]


def over_shared(teams: pd.DataFrame) -> pd.DataFrame:
    """How many times faster a team with masks steps than one dense network for all in torch: column `ratio`."""
    us = teams.set_index(["width", "n_agents", "batch", "form"])["us"].unstack("form")
    return (us["torch, one shared network"] / us[list(SPARSE)].min(axis=1)).rename("ratio").reset_index()


def layer_maps(layers: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Two maps of a layer on the CPU: against torch, and what 2:4 itself gains in the kernel for few rows.

    `layers`: columns width, n_agents, batch, form, us, speedup, own.
    """
    crossover_map(fastest_sparse(layers), "speedup", axes[0], title="one layer, 2:4 over torch")
    few = layers[layers["form"] == "2:4"]
    crossover_map(few, "own", axes[1], title="2:4 over dense weights, kernel for few rows")


def team_panels(teams: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Two panels for each of SHOWN_BATCHES: a team's step against torch, and against one network without masks."""
    fastest, shared = fastest_sparse(teams), over_shared(teams)
    for batch, left, right in zip(SHOWN_BATCHES, axes[::2], axes[1::2], strict=True):
        title = f"whole step, batch {batch}"
        rows = fastest[fastest["batch"] == batch]
        speedup_over_agents(rows, "speedup", left, title=title, ylabel="2:4 over the fastest torch")
        rows = shared[shared["batch"] == batch]
        speedup_over_agents(rows, "ratio", right, title=title, ylabel="2:4 over one shared network")


def gpu_figure(teams: pd.DataFrame) -> Figure:
    """Steps of teams on a GPU inside CUDA graphs, over a dense network for each agent, for each 2:4 form and batch.

    `teams`: columns width, n_agents, batch, form, mode, speedup (`make gpu`).
    """
    rows = teams[(teams["mode"] == "graph") & teams["form"].str.startswith("2:4")].dropna(subset=["speedup"])
    cases = list(rows.groupby(["form", "batch"], sort=False))
    fig, axes = panels(len(cases), n_columns=3)
    for ax, ((form, batch), each) in zip(axes, cases, strict=True):
        speedup_over_agents(each, "speedup", ax, title=f"{form}\nbatch {batch}")
    return shared_legend(fig)


def gpu_map(layers: pd.DataFrame) -> Figure:
    """The map of a layer on a GPU: 2:4 by cuSPARSELt over dense."""
    fig, (ax,) = panels(1, height=2.6)
    crossover_map(layers[layers["form"] == "2:4, cuSPARSELt"], "speedup", ax, title="one layer, 2:4 over dense")
    return fig


def case_marks(table: pd.DataFrame, case: Sequence[str], value: str, label: str) -> Figure:
    """A mark for each row, by its case (columns `case`); its implementation, mode and threads are in the legend.

    `label` names the column `value` on its axis, with the unit.
    """
    rows = table.dropna(subset=[value])
    texts = [", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in case) for row in rows.to_dict("records")]
    shown = rows["form"].astype(str)
    if "mode" in rows:
        shown = shown + ", " + rows["mode"]
    if "threads" in rows:
        shown = shown + [", 1 thread" if n == 1 else f", {n} threads" for n in rows["threads"]]
    fig, (ax,) = panels(1, height=max(1.6, 0.6 + 0.22 * len(set(texts)), 0.14 * shown.nunique()))
    sns.stripplot(rows.assign(case=texts, form=shown), x=value, y="case", hue="form", ax=ax, jitter=False, size=4)
    sns.move_legend(ax, "center left", bbox_to_anchor=(1, 0.5), title=None)
    ax.set(ylabel="", xlabel=label)
    ax.grid(axis="y", alpha=0.3)
    if rows[value].max() > 3 * rows[value].min() > 0:
        ax.set_xscale("log")
        ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter("{:g}".format))
    return fig
