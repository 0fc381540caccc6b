"""Figures on speedup and memory: dashed lines are predicted, open markers published, filled markers measured.

Data comes from `k24lab.inference.costs`, `roofline` and `bench_gpu`; drawn for 5.5 inches of text width, also in
grey.
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from k24lab.analysis.style import GREY, OKABE_ITO

Dashes = tuple[int, tuple[float, ...]]

# Agents' widths in warm colours and short dashes, large layers in cool ones and long dashes.
_WIDTH_STYLE: dict[int, tuple[str, Dashes]] = {
    64: (OKABE_ITO["vermillion"], (0, (1, 1))),
    128: (OKABE_ITO["orange"], (0, (2, 1))),
    256: (OKABE_ITO["purple"], (0, (3, 1, 1, 1))),
    1024: (OKABE_ITO["sky"], (0, (5, 1.5))),
    4096: (OKABE_ITO["green"], (0, (6, 1, 1, 1, 1, 1))),
    8192: (OKABE_ITO["blue"], (0, (9, 2))),
}
_OTHER_WIDTH: tuple[str, Dashes] = (OKABE_ITO["black"], (0, (4, 2)))
_DEVICE_MARKER = {"A100": "o", "H100": "s", "RTX 3060": "^"}
_OTHER_DEVICE = "D"
_KEY_OFFSETS = ((3.5, -4.5), (-7.5, -1.5), (3.5, -1.5), (3.5, 1.5))  # points; neighbours in the list part
_FINE_TICKS = (0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0)
_COARSE_TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_LAYER_STYLE = {  # colour, hatch
    "fc1": ("0.92", ""),
    "GRU input": (OKABE_ITO["sky"], ""),
    "GRU hidden": (OKABE_ITO["blue"], ""),
    "fc2": ("0.8", "////"),
    "fc3": ("0.65", ""),
    "fc4": ("0.25", ""),
}
_MASKED_LABEL = {"none": "dense", "fc": "2:4 in fc", "all": "2:4 in fc and GRU"}
_STORAGE_STYLE = {  # colour, marker
    "a dense network each": (OKABE_ITO["black"], "X"),
    "a packed 2:4 network each": (OKABE_ITO["vermillion"], "s"),
    "shared weights + patterns": (OKABE_ITO["blue"], "o"),
    "one shared dense network": (OKABE_ITO["orange"], "^"),
}


def plot_speedup_vs_batch(
    predicted: pd.DataFrame,
    published: pd.DataFrame | None = None,
    measured: pd.DataFrame | None = None,
    claim: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Speedup of 2:4 over dense against batch (rows of activations), a line per layer width.

    Args:
        predicted: width, batch, speedup (`predict_layers`, one device, one timing).
        published: key, device, batch, speedup; each point is labelled with its key.
        measured: out_features, batch, speedup, device.
        claim: speedups to shade as what was claimed.
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots()[1]
    _shade_claim(ax.axhspan, claim)
    ax.axhline(1.0, color=GREY, linewidth=0.6, zorder=0)
    for width, line in predicted.groupby("width"):
        colour, dashes = _WIDTH_STYLE.get(int(str(width)), _OTHER_WIDTH)
        ax.plot(line["batch"], line["speedup"], color=colour, linestyle=dashes, label=f"{width} wide, predicted")
    if published is not None:
        for row, point in enumerate(published.dropna(subset="batch").to_dict("records")):
            _open_point(ax, point["batch"], point["speedup"], point["device"])
            place, offset = (point["batch"], point["speedup"]), _KEY_OFFSETS[row % len(_KEY_OFFSETS)]
            ax.annotate(point["key"], place, offset, textcoords="offset points", fontsize=7)
    if measured is not None:
        for point in measured.to_dict("records"):
            colour = _WIDTH_STYLE.get(point["out_features"], _OTHER_WIDTH)[0]
            label = f"{point['device']}, measured"
            place = ([point["batch"]], [point["speedup"]])
            ax.plot(*place, "P", color=colour, markeredgecolor="black", markersize=5, label=label)
    ax.set_xscale("log", base=10)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("batch (rows of activations)")
    _speedup_axis(ax, "y")
    return ax


def plot_published(published: pd.DataFrame, claim: tuple[float, float] | None = None, ax: Axes | None = None) -> Axes:
    """Published speedups, one row each in the order given, with key, case, device and timing as labels.

    Args:
        published: key, case, device, timing, speedup.
        claim: speedups to shade as what was claimed.
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots()[1]
    _shade_claim(ax.axvspan, claim)
    ax.axvline(1.0, color=GREY, linewidth=0.6, zorder=0)
    labels = []
    for row, point in enumerate(published.to_dict("records")):
        ax.plot([1.0, point["speedup"]], [row, row], color="0.8", linewidth=0.8, zorder=1)
        _open_point(ax, point["speedup"], row, point["device"])
        labels.append(f"{point['case']} ({point['device']}, {point['timing']})   {point['key']}")
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    _speedup_axis(ax, "x")
    return ax


def plot_multiply_adds(table: pd.DataFrame, bounds: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Multiply-adds per agent step by layer, in percent of dense, a bar per choice of masked layers.

    Args:
        table: masked, layer, share (`multiply_add_table`).
        bounds: masked, bound (`bound_table`), written behind each bar.
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots()[1]
    names = list(dict.fromkeys(table["masked"]))
    left = dict.fromkeys(names, 0.0)
    for layer, part in table.groupby("layer", sort=False):
        colour, hatch = _LAYER_STYLE.get(str(layer), ("white", "xx"))
        shares = [100.0 * part.loc[part["masked"] == name, "share"].sum() for name in names]
        starts = [left[name] for name in names]
        ax.barh(names, shares, left=starts, color=colour, hatch=hatch, edgecolor="black", linewidth=0.4, label=layer)
        left = {name: start + share for name, start, share in zip(names, starts, shares, strict=True)}
    for row, name in enumerate(names):
        bound = bounds.set_index("masked")["bound"][name]
        text = "" if bound == 1.0 else f"speedup of at most {bound:.2f}×"
        ax.text(left[name] + 1.5, row, text, va="center", fontsize=7)
    ax.set_yticks(range(len(names)), [_MASKED_LABEL.get(name, name) for name in names])
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("multiply-adds per agent step (% of the dense network)")
    ax.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1.2, columnspacing=1.2)
    return ax


def plot_team_memory(memory: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Kilobytes (1000 bytes) of a team's weights against the number of agents, a line per way to store them.

    Args:
        memory: storage, n_agents, dtype, bytes (`team_memory`); counted, so the lines are solid.
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots()[1]
    order = [s for s in _STORAGE_STYLE if s in set(memory["storage"])]
    for storage in order:
        line = memory[memory["storage"] == storage]
        colour, marker = _STORAGE_STYLE[storage]
        ax.plot(line["n_agents"], line["bytes"] / 1e3, color=colour, marker=marker, label=storage)
    agents = sorted(set(memory["n_agents"]))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    _plain_ticks(ax, "x", agents)
    ax.yaxis.set_major_formatter(FuncFormatter(_plain))
    ax.set_xlabel("agents")
    ax.set_ylabel(f"weights of the team (kB, {'/'.join(sorted(set(memory['dtype'])))})")
    return ax


def plot_step_speedup(steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Predicted speedup of a whole team step against the number of agents, a line per hidden size.

    Args:
        steps: hidden_dim, n_agents, speedup (`predict_steps`, one device).
        ax: where to draw; a new figure if None.
    """
    ax = ax or plt.subplots()[1]
    agents = sorted(set(steps["n_agents"]))
    ax.axhline(1.0, color=GREY, linewidth=0.6, zorder=0)
    ax.plot(agents, [1.0 / n for n in agents], color=GREY, linewidth=0.8, label="1 / agents")
    for hidden_dim, line in steps.groupby("hidden_dim"):
        colour, dashes = _WIDTH_STYLE.get(int(str(hidden_dim)), _OTHER_WIDTH)
        ax.plot(
            line["n_agents"], line["speedup"], color=colour, linestyle=dashes, label=f"hidden {hidden_dim}, predicted"
        )
    ax.set_xscale("log", base=2)
    _plain_ticks(ax, "x", agents)
    ax.set_xlabel("agents, a mask each")
    _speedup_axis(ax, "y", _COARSE_TICKS, low=0.025)
    return ax


def shared_legend(fig: Figure, axes: Sequence[Axes], ncols: int) -> None:
    """One legend below the figure for all axes, each label once: predicted, published, measured, then the rest."""
    kinds = ("predicted", "published", "measured", "")
    handles: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # Stable: lines stay in the order drawn; devices, which come as they are met, are sorted.
    labels = sorted(handles, key=lambda x: x if x.endswith("published") else "")
    labels.sort(key=lambda x: [x.endswith(kind) for kind in kinds].index(True))
    fig.legend([handles[x] for x in labels], labels, loc="outside lower center", ncols=ncols)


def _open_point(ax: Axes, x: float, y: float, device: str) -> None:
    known = device in _DEVICE_MARKER
    label = f"{device if known else 'other device'}, published"
    marker = _DEVICE_MARKER.get(device, _OTHER_DEVICE)
    ax.plot([x], [y], marker, color="black", markerfacecolor="white", markersize=4.5, label=label, zorder=3)


def _shade_claim(span: Callable[..., object], claim: tuple[float, float] | None) -> None:
    if claim is not None:
        label = f"design document: {claim[0]:g}–{claim[1]:g}×"
        span(*claim, color=OKABE_ITO["yellow"], alpha=0.35, linewidth=0, label=label, zorder=0)


def _speedup_axis(ax: Axes, which: str, ticks: Sequence[float] = _FINE_TICKS, low: float = 0.07) -> None:
    """Log axis with plain numbers from `low` up, labelled as a ratio of times."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    _plain_ticks(ax, which, ticks)
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, 2.4)
    (ax.set_xlabel if which == "x" else ax.set_ylabel)("speedup (dense / 2:4 time)")


def _plain_ticks(ax: Axes, which: str, ticks: Sequence[float]) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _position: object = None) -> str:
    return f"{value:g}"
