"""Where 2:4 pays at inference, from `k24lab bench inference`: crossover maps of layers, speedups of whole teams."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from k24lab.analysis.plots import panels
from k24lab.analysis.style import GREY, OKABE_ITO

LIMIT = 2.0  # of log2 of a speedup on the colour scale: beyond 4x, or a quarter, colours stay
_LINES = (("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", "-."), ("black", "X", ":"))


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
    for (width, rows), (color, marker, dashes) in zip(table.groupby("width"), _LINES, strict=False):
        line = ax.plot(rows["n_agents"], rows[value], color=OKABE_ITO[color], marker=marker, linestyle=dashes)
        line[0].set_label(f"hidden size {width}")
    agents = sorted(set(table["n_agents"]))
    ax.set_xscale("log")
    ax.set_xticks(agents, [str(n) for n in agents])
    ax.minorticks_off()
    ax.set(title=title, xlabel="agents, a mask each", ylabel=ylabel, ylim=(0, 1.1 * max(1.0, table[value].max())))
    return ax


def layer_maps(layers: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Three maps: a layer on the CPU against torch, against the same kernel with dense weights, and that predicted.

    `layers`: columns width, batch, form, speedup, own; rows of the form `roofline` are predicted.
    """
    sparse, predicted = layers[layers["form"] == "2:4"], layers[layers["form"] == "roofline"]
    crossover_map(sparse, "speedup", axes[0], title="one layer, 2:4 over torch")
    crossover_map(sparse, "own", axes[1], title="2:4 over dense weights, same kernel")
    crossover_map(predicted, "speedup", axes[2], title="the same, predicted (roofline)")


def team_panels(teams: pd.DataFrame, batches: Sequence[int], axes: Sequence[Axes]) -> None:
    """Two panels for each batch: a team's step against the fastest torch, and against the same kernel, dense.

    `teams`: columns width, n_agents, batch, form, speedup, own.
    """
    for k, batch in enumerate(batches):
        rows = teams[(teams["form"] == "2:4") & (teams["batch"] == batch)]
        left, right = axes[2 * k : 2 * k + 2]
        team_lines(rows, "speedup", left, title=f"whole step, batch {batch}", ylabel="2:4 over the fastest torch")
        team_lines(rows, "own", right, title=f"whole step, batch {batch}", ylabel="2:4 over dense, same kernel")


def inference_figure(layers: pd.DataFrame, teams: pd.DataFrame, batches: Sequence[int]) -> Figure:
    """All of the CPU's: the maps of layers, the team against one network without masks, and the panels of teams."""
    fig, axes = panels(4 + 2 * len(batches), n_columns=2, height=[2.4, 2.4] + [1.9] * len(batches))
    layer_maps(layers, axes[:3])
    shared, first = over_shared(teams), batches[0]
    title, label = f"whole step, batch {first}: the price of masks", "2:4 over one shared network"
    team_lines(shared[shared["batch"] == first], "ratio", axes[3], title=title, ylabel=label)
    team_panels(teams, batches, axes[4:])
    return fig


def over_shared(teams: pd.DataFrame) -> pd.DataFrame:
    """How many times faster a team with masks steps than one dense network for all in torch: column `ratio`."""
    keys = ["width", "n_agents", "batch"]
    us = teams.set_index([*keys, "form"])["us"].unstack("form")
    return (us["torch, one shared network"] / us["2:4"]).rename("ratio").reset_index()


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
