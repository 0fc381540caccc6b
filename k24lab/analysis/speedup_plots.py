"""What training and inference cost: counted, measured, predicted and published times and bytes.

Dashed lines over the batch are predicted, open markers published, filled markers measured. The tables come from
`k24lab.inference.costs` and `k24lab.bench`; column `form` names the implementation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from k24lab.analysis.curve_plots import new_axes, panels
from k24lab.analysis.style import GREY, OKABE_ITO, TEXT_WIDTH

LINES = (("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", "-."), ("black", "X", ":"))
WIDTH_COLORS = ("vermillion", "orange", "purple", "sky", "green", "blue")
# Colour and hatch of the parts of an update, and of the layers fc1, GRU input and hidden (blue), fc2, fc3, fc4.
PART_LOOKS = tuple(zip(
    ("orange", "sky", "blue", "green", "vermillion", "purple", "yellow"),
    ("", "////", "", "....", "", "\\\\\\\\", ""),
    strict=True,
))  # fmt: skip
LAYER_LOOKS = (("0.92", ""), ("sky", ""), ("blue", ""), ("0.8", "////"), ("0.65", ""), ("0.25", ""))
MASKED_LABEL = {"none": "dense", "fc": "2:4 in fc", "all": "2:4 in fc and GRU"}
DEVICE_MARKER = {"A100": "o", "H100": "s", "RTX 3060": "^"}
KEY_OFFSETS = ((3.5, -4.5), (-7.5, -1.5), (3.5, -1.5), (3.5, 1.5))  # points; keys of neighbours do not overlap
SPEEDUP_TICKS = (0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)
LIMIT = 2.0  # of log2 of a speedup on the colour scale, which ends at 4x and at a quarter
SPARSE = ("2:4", "2:4, columns")  # the two 2:4 kernels: for few rows, for many
SHOWN_BATCHES = (1, 8, 256)


def lines_over_agents(
    table: pd.DataFrame, value: str, lines: str, ax: Axes | None = None, *, label: str = "{}", title: str = ""
) -> Axes:
    """A quantity against the number of agents (logarithmic), a line for each value of the column `lines`.

    `table`: columns n_agents, `lines` and `value`.
    """
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
    table: pd.DataFrame, value: str, ax: Axes, *, title: str = "", ylabel: str = "2:4 over dense", log: bool = False
) -> Axes:
    """A speedup against the number of agents, a line per hidden size (`width`); above the dotted line is faster.

    `log`: a logarithmic axis, with a grey line of 1 / agents.
    """
    lines_over_agents(table, value, "width", ax, label="hidden size {}", title=title)
    ax.axhline(1.0, color=GREY, linestyle=":", linewidth=0.9)
    ax.set(xlabel="agents, a mask each", ylabel=ylabel, ylim=(0, 1.1 * max(1.0, table[value].max())))
    if log:
        agents = sorted(set(table["n_agents"]))
        ax.plot(agents, [1 / n for n in agents], color=GREY, linewidth=0.8, label="1 / agents")
        ax.set(yscale="log", ylim=(0.8 / max(agents), 1.5))
        ax.yaxis.set_major_formatter("{x:g}")
    return ax


def team_memory(memory: pd.DataFrame, ax: Axes | None = None, *, title: str = "") -> Axes:
    """Kilobytes (1000 bytes) of a team's weights against the number of agents, a line per way to store them.

    `memory`: columns storage, n_agents, dtype, bytes (`costs.team_memory`).
    """
    kilobytes = memory.assign(kilobytes=memory["bytes"] / 1e3)
    ax = lines_over_agents(kilobytes, "kilobytes", "storage", ax, title=title)
    ax.set(yscale="log", ylabel=f"weights of the team (kB, {'/'.join(sorted(set(memory['dtype'])))})")
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


def stacked_bars(
    widths: pd.DataFrame, ends: Sequence[str], looks: Sequence[tuple[str, str]], ax: Axes, edgecolor: str = "white"
) -> Axes:
    """A horizontal bar per row of `widths`, with a part per column, and a text at its end.

    `looks`: colour and hatch of each part.
    """
    colors: list[Any] = [OKABE_ITO.get(color, color) for color, _ in looks][: widths.shape[1]]
    widths.plot.barh(stacked=True, ax=ax, color=colors, width=0.8, edgecolor=edgecolor, linewidth=0.4, legend=False)
    for bars, (_, hatch) in zip(list(ax.containers), looks, strict=False):
        plt.setp(bars, hatch=hatch)
    place: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7}
    for y, (end, width) in enumerate(zip(ends, widths.sum(axis=1), strict=True)):
        ax.annotate(end, (width, y), (3, 0), **place)
    ax.invert_yaxis()
    ax.set(ylabel="", xlim=(0, 1.18 * widths.sum(axis=1).max()))
    return ax


def part_bars(table: pd.DataFrame, parts: Sequence[str], ax: Axes | None = None) -> Axes:
    """Milliseconds of each part of an update, a bar per variant, and the ratio to the first variant.

    `table`: columns variant, ms, ratio, and a share per part.
    """
    table = table.set_index("variant")
    widths, ends = table[list(parts)].mul(table["ms"], axis=0), [f"{ratio:.2f}x" for ratio in table["ratio"]]
    ax = stacked_bars(widths, ends, PART_LOOKS, ax or new_axes())
    ax.set_xlabel("ms per update")
    return ax


def multiply_adds(table: pd.DataFrame, bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Multiply-adds per agent step by layer, in percent of dense, a bar per choice of masked layers.

    Args:
        table: masked, layer, share (`costs.multiply_add_table`).
        bounds: masked, bound (`costs.bound_table`), written behind each bar.
        ax: where to draw; a new figure if None.
    """
    shares = 100 * table.pivot(index="masked", columns="layer", values="share")
    shares = shares.loc[bounds["masked"], list(dict.fromkeys(table["layer"]))].rename(MASKED_LABEL)
    ends = ["" if bound == 1.0 else f"speedup of at most {bound:.2f}×" for bound in bounds["bound"]]
    ax = stacked_bars(shares, ends, LAYER_LOOKS, ax or new_axes(), edgecolor="black")
    ax.set_xlabel("multiply-adds per agent step (% of the dense network)")
    ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1.2, columnspacing=1.2)
    return ax


def speedup_over_batch(
    predicted: pd.DataFrame,
    published: pd.DataFrame | None = None,
    measured: pd.DataFrame | None = None,
    claim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Speedup of 2:4 over dense against batch (rows of activations), a line per layer width.

    Args:
        predicted: width, batch, speedup (`roofline.predict_layers`, one device, one timing).
        published: key, device, batch, speedup; each point is labelled with its key.
        measured: width, batch, speedup, device.
        claim: speedups to shade as what the original design claims.
        ax: where to draw; a new figure if None.
    """
    ax = ax or new_axes(height=2.6)
    ax.axhline(1.0, color=GREY, linewidth=0.6, zorder=0)
    colors = {w: OKABE_ITO[color] for w, color in zip(predicted["width"].unique(), WIDTH_COLORS, strict=False)}
    for k, (width, line) in enumerate(predicted.groupby("width")):
        look: dict[str, Any] = {"color": colors.get(width, "black"), "linestyle": (0, (1 + 1.5 * k, 1.5))}
        ax.plot(line["batch"], line["speedup"], label=f"{width} wide, predicted", **look)
    if published is not None:
        points = published.dropna(subset=["batch"])
        _published_points(points, points["batch"], points["speedup"], ax)
        for row, point in enumerate(points.itertuples()):
            offset = KEY_OFFSETS[row % len(KEY_OFFSETS)]
            ax.annotate(str(point.key), (point.batch, point.speedup), offset, textcoords="offset points", fontsize=7)
    for width, points in () if measured is None else measured.groupby("width"):
        look = {"color": colors.get(width, "black"), "markeredgecolor": "black", "markersize": 5}
        ax.plot(points["batch"], points["speedup"], "P", label=f"{points['device'].iloc[0]}, measured", **look)
    _shade(ax.axhspan, claim)
    ax.set(xscale="log", xlabel="batch (rows of activations)", yscale="log", ylim=(0.07, 2.4))
    ax.set_yticks(SPEEDUP_TICKS, [f"{tick:g}" for tick in SPEEDUP_TICKS])
    ax.minorticks_off()
    ax.set_ylabel("speedup (dense / 2:4 time)")
    return ax


def published_speedups(
    published: pd.DataFrame, claim: tuple[float, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Published speedups, one row each in the order given, with case, device, timing and key as labels.

    Args:
        published: key, case, device, timing, speedup.
        claim: speedups to shade as what the original design claims.
        ax: where to draw; a new figure if None.
    """
    ax = ax or new_axes(height=3.9)
    rows = pd.Series(range(len(published)), index=published.index)
    ax.axvline(1.0, color=GREY, linewidth=0.6, zorder=0)
    ax.hlines(rows, 1.0, published["speedup"], color="0.8", linewidth=0.8, zorder=1)
    _published_points(published, published["speedup"], rows, ax)
    _shade(ax.axvspan, claim)
    labels = [f"{p.case} ({p.device}, {p.timing})   {p.key}" for p in published.itertuples()]
    ax.set(xscale="log", xlim=(0.07, 2.4), xlabel="speedup (dense / 2:4 time)", ylim=(len(labels) - 0.4, -0.6))
    ax.set_xticks(SPEEDUP_TICKS, [f"{tick:g}" for tick in SPEEDUP_TICKS])
    ax.minorticks_off()
    ax.set_yticks(rows, labels)
    ax.tick_params(axis="y", length=0)
    return ax


def _published_points(published: pd.DataFrame, x: pd.Series, y: pd.Series, ax: Axes) -> None:
    """Open markers, by device."""
    known = published["device"].where(published["device"].isin(list(DEVICE_MARKER)), "other device")
    for device in [*DEVICE_MARKER, "other device"]:
        if (here := known == device).any():
            look: dict[str, Any] = {"markerfacecolor": "white", "markersize": 4.5, "linestyle": "none", "zorder": 3}
            look |= {"marker": DEVICE_MARKER.get(device, "D"), "label": f"{device}, published"}
            ax.plot(x[here], y[here], color="black", **look)


def _shade(span: Callable[..., object], claim: tuple[float, float] | None) -> None:
    if claim is not None:
        label = f"original design: {claim[0]:g}–{claim[1]:g}×"
        span(*claim, color=OKABE_ITO["yellow"], alpha=0.35, linewidth=0, label=label, zorder=0)


def fastest_sparse(table: pd.DataFrame) -> pd.DataFrame:
    """Of each case the row of the faster 2:4 kernel."""
    rows = table[table["form"].isin(SPARSE)]
    return rows.loc[rows.groupby(["width", "n_agents", "batch"])["us"].idxmin()]


def over_shared(teams: pd.DataFrame) -> pd.DataFrame:
    """How many times faster a team with masks steps than one dense network for all in torch: column `ratio`."""
    us = teams.set_index(["width", "n_agents", "batch", "form"])["us"].unstack("form")
    return (us["torch, one shared network"] / us[list(SPARSE)].min(axis=1)).rename("ratio").reset_index()


def layer_maps(layers: pd.DataFrame, axes: Sequence[Axes]) -> None:
    """Four maps of a layer on the CPU: against torch, one kernel against the other, 2:4's own share, and a roofline's.

    `layers`: columns width, n_agents, batch, form, us, speedup, own; rows with the form `roofline` are predicted.
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
    for batch, left, right in zip(SHOWN_BATCHES, axes[::2], axes[1::2], strict=True):
        title = f"whole step, batch {batch}"
        rows = fastest[fastest["batch"] == batch]
        speedup_over_agents(rows, "speedup", left, title=title, ylabel="2:4 over the fastest torch")
        rows = shared[shared["batch"] == batch]
        speedup_over_agents(rows, "ratio", right, title=title, ylabel="2:4 over one shared network")


def inference_figure(layers: pd.DataFrame, teams: pd.DataFrame) -> Figure:
    """`k24lab bench inference` on the CPU: the maps of layers and the panels of teams."""
    n = len(SHOWN_BATCHES)
    fig, axes = panels(4 + 2 * n, n_columns=2, height=[2.4, 2.4] + [1.9] * n)
    layer_maps(layers, axes[:4])
    team_panels(teams, axes[4:])
    return fig


def gpu_figure(table: pd.DataFrame) -> Figure:
    """Maps of layers on a GPU, by kernels alone and with the host's time, and steps of teams for each batch.

    `table`: columns level, timing, width, batch, n_agents, dtype, speedup (dense over 2:4).
    """
    layers, teams = (table[table["level"] == level] for level in ("layer", "team"))
    cases = list(teams.groupby(["dtype", "batch"], sort=False))
    fig, axes = panels(2 + len(cases), n_columns=2, height=[2.6] + [1.9] * -(-len(cases) // 2))
    titles = {"graph": "one layer, GPU time", "eager": "one call, with the host's time"}
    for ax, (timing, title) in zip(axes, titles.items(), strict=False):
        crossover_map(layers[layers["timing"] == timing], "speedup", ax, title=title)
    for ax, ((dtype, batch), rows) in zip(axes[2:], cases, strict=True):
        speedup_over_agents(rows, "speedup", ax, title=f"whole step, {dtype}, batch {batch}")
    return fig


def training_figure(updates: Mapping[str, pd.DataFrame], teams: pd.DataFrame, parts: Sequence[str]) -> Figure:
    """`k24lab bench train`: bars of the parts of an update for every shape, and the cost per agent (flat lines scale).

    Args:
        updates: a table for `part_bars` by the name of its shape.
        teams: variant, n_agents, ms.
        parts: names of the columns with shares.
    """
    fig, axes = plt.subplots(len(updates) + 1, 1, figsize=(TEXT_WIDTH, 2.0 * len(updates) + 1.9), layout="constrained")
    for ax, (name, table) in zip(axes, updates.items(), strict=False):
        part_bars(table, parts, ax).set_title(name)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    costs = teams.assign(cost=teams["ms"] / teams["n_agents"])
    ax = lines_over_agents(costs, "cost", "variant", axes[-1])
    ax.set(ylabel="ms per update and agent", ylim=(0, 1.1 * costs["cost"].max()))
    ax.legend(loc="lower center", ncols=4)
    return fig
