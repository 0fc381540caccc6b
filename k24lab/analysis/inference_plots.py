"""Where 2:4 pays at inference, from `k24lab bench inference`: crossover maps of layers, speedups of whole teams."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from k24lab.analysis.bench_plots import LINES
from k24lab.analysis.curve_plots import panels
from k24lab.analysis.style import GREY, OKABE_ITO

LIMIT = 2.0  # of log2 of a speedup on the colour scale: beyond 4x, or a quarter, colours stay
SPARSE = ("2:4", "2:4, columns")  # forms of the two kernels: for few rows, for many
SHOWN_BATCHES = (1, 8, 256)


def crossover_map(table: pd.DataFrame, value: str, ax: Axes, *, title: str = "") -> Axes:
    """A speedup per width (lines) and batch (columns), as colour and number; blank where it was not measured.

    `table`: columns width, batch and `value`. Blue is faster, red slower, white a tie.
    """
    grid = table.pivot(index="width", columns="batch", values=value).sort_index(ascending=False)
    norm = TwoSlopeNorm(0.0, -LIMIT, LIMIT)
    ax.imshow(np.log2(grid.to_numpy(dtype=float)), cmap="RdBu", norm=norm, aspect="auto")
    for (row, column), speedup in np.ndenumerate(grid.to_numpy(dtype=float)):
        if speedup == speedup:
            color = "white" if abs(np.log2(speedup)) > 0.65 * LIMIT else "black"
            ax.text(column, row, f"{speedup:.1f}", color=color, ha="center", va="center", fontsize=6.5)
    ax.set_xticks(range(grid.shape[1]), [str(x) for x in grid.columns])
    ax.set_yticks(range(grid.shape[0]), [str(x) for x in grid.index])
    ax.set(title=title, xlabel="batch", ylabel="layer width")
    return ax


def team_lines(table: pd.DataFrame, value: str, ax: Axes, *, title: str = "", ylabel: str = "") -> Axes:
    """A speedup against the number of agents, a line per hidden size; above the grey line is faster."""
    ax.axhline(1.0, color=GREY, linestyle=":", linewidth=0.9)
    for (width, rows), (color, marker, dashes) in zip(table.groupby("width"), LINES, strict=False):
        line = ax.plot(rows["n_agents"], rows[value], color=OKABE_ITO[color], marker=marker, linestyle=dashes)
        line[0].set_label(f"hidden size {width}")
    agents = sorted(set(table["n_agents"]))
    ax.set_xscale("log")
    ax.set_xticks(agents, [str(n) for n in agents])
    ax.minorticks_off()
    ax.set(title=title, xlabel="agents, a mask each", ylabel=ylabel, ylim=(0, 1.1 * max(1.0, table[value].max())))
    return ax


def fastest_sparse(table: pd.DataFrame) -> pd.DataFrame:
    """Of each case the row of the faster 2:4 kernel."""
    rows = table[table["form"].isin(SPARSE)]
    return rows.loc[rows.groupby(["width", "n_agents", "batch"])["us"].idxmin()]


def layer_maps(layers: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Four maps of a layer on the CPU: against torch, one kernel against the other, 2:4's own share, and a roofline's.

    `layers`: columns width, n_agents, batch, form, us, speedup, own; rows of the form `roofline` are predicted.
    """
    few, predicted = layers[layers["form"] == "2:4"], layers[layers["form"] == "roofline"]
    us = layers[layers["form"].isin(SPARSE)].pivot(index=["width", "batch"], columns="form", values="us")
    columns = (us[SPARSE[0]] / us[SPARSE[1]]).rename("columns").reset_index()
    crossover_map(fastest_sparse(layers), "speedup", axes[0], title="one layer, 2:4 over torch")
    crossover_map(columns, "columns", axes[1], title="2:4: kernel for columns over that for few rows")
    crossover_map(few, "own", axes[2], title="2:4 over dense weights, kernel for few rows")
    crossover_map(predicted, "speedup", axes[3], title="the same, predicted (roofline)")


def team_panels(teams: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Two panels for each of SHOWN_BATCHES: a team's step against torch, and against one network without masks.

    `teams`: columns width, n_agents, batch, form, us, speedup.
    """
    fastest, shared = fastest_sparse(teams), over_shared(teams)
    for k, batch in enumerate(SHOWN_BATCHES):
        left, right = axes[2 * k : 2 * k + 2]
        rows, title = fastest[fastest["batch"] == batch], f"whole step, batch {batch}"
        team_lines(rows, "speedup", left, title=title, ylabel="2:4 over the fastest torch")
        rows = shared[shared["batch"] == batch]
        team_lines(rows, "ratio", right, title=title, ylabel="2:4 over one shared network")


def inference_figure(layers: pd.DataFrame, teams: pd.DataFrame) -> Figure:
    """All of the CPU's: the maps of layers and the panels of teams."""
    n = len(SHOWN_BATCHES)
    fig, axes = panels(4 + 2 * n, n_columns=2, height=[2.4, 2.4] + [1.9] * n)
    layer_maps(layers, axes[:4])
    team_panels(teams, axes[4:])
    return fig


def over_shared(teams: pd.DataFrame) -> pd.DataFrame:
    """How many times faster a team with masks steps than one dense network for all in torch: column `ratio`."""
    keys = ["width", "n_agents", "batch"]
    us = teams.set_index([*keys, "form"])["us"].unstack("form")
    return (us["torch, one shared network"] / us[list(SPARSE)].min(axis=1)).rename("ratio").reset_index()


def gpu_figure(table: pd.DataFrame) -> Figure:
    """Maps of layers on a GPU, by kernels alone and with the host's time, and steps of teams for each batch.

    `table`: columns level, timing, width, batch, n_agents, dtype, speedup (dense over 2:4).
    """
    layers, teams = (table[table["level"] == level] for level in ("layer", "team"))
    cases = list(teams[["dtype", "batch"]].drop_duplicates().itertuples(index=False, name=None))
    n_rows = -(-len(cases) // 2)
    fig, axes = panels(2 + len(cases), n_columns=2, height=[2.6] + [1.9] * n_rows)
    titles = {"graph": "one layer, GPU time", "eager": "one call, with the host's time"}
    for ax, (timing, title) in zip(axes, titles.items(), strict=False):
        crossover_map(layers[layers["timing"] == timing], "speedup", ax, title=title)
    for ax, (dtype, batch) in zip(axes[2:], cases, strict=True):
        rows = teams[(teams["dtype"] == dtype) & (teams["batch"] == batch)]
        title = f"whole step, {dtype}, batch {batch}"
        team_lines(rows, "speedup", ax, title=title, ylabel="2:4 over dense")
    return fig
