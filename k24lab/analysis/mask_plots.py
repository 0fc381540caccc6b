"""Pictures of masks, of distances between them, and of how a single layer learns them (01_masks)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn
from jaxtyping import Float, Integer
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from k24lab.analysis.curve_plots import new_axes, panels
from k24lab.analysis.similarity import masks
from k24lab.analysis.style import GREY, HALF_WIDTH, OKABE_ITO
from k24lab.core.pattern_table import GROUP_SIZE, N_PATTERNS, PATTERN_NAMES

PATTERN_COLORS = [OKABE_ITO[c] for c in ("orange", "sky", "green", "yellow", "blue", "vermillion")]
TILE_HEIGHT = 1.25  # inches, one line of agents side by side
TITLE_HEIGHT = 0.2  # inches
PER_LINE = 4  # agents side by side before a new line begins
SHORT = 3  # letters that stand under a column unturned


def mask_map(
    index: Integer[np.ndarray, "M out G"],
    ax: Axes | None = None,
    *,
    rows: int = 16,
    groups: int = 8,
    title: str = "",
) -> Axes:
    """The first `rows` x 4 `groups` weights of a layer, agents side by side: dropped ones white, kept ones coloured.

    The colour says how many agents keep that weight: dark is this agent's alone, bright is common to all. `title` says
    whose masks they are (`style.run_title`).
    """
    kept = masks(index[:, :rows, :groups])
    owners = np.where(kept, kept.sum(axis=0), 0)  # [M, rows, 4 groups]
    n_masks = len(index)
    colors = ["white", *colormaps["viridis"](np.linspace(0.1, 0.9, n_masks))]
    names = ["dropped", *map(str, range(1, n_masks + 1))]
    return _side_by_side(owners, colors, names, "agents that keep the weight", ax, GROUP_SIZE, title)


def pattern_map(
    index: Integer[np.ndarray, "M out G"],
    ax: Axes | None = None,
    *,
    rows: int = 16,
    groups: int = 16,
    title: str = "",
) -> Axes:
    """The pattern chosen for the first `rows` x `groups` groups of a layer, agents side by side, a colour a pattern."""
    return _side_by_side(index[:, :rows, :groups], PATTERN_COLORS, PATTERN_NAMES, "pattern (1: kept)", ax, 1, title)


def _side_by_side(
    blocks: Integer[np.ndarray, "M rows columns"],
    colors: Sequence[Any],
    names: Sequence[str],
    label: str,
    ax: Axes | None,
    columns_per_group: int,
    title: str,
) -> Axes:
    """Blocks side by side, `PER_LINE` in a line, thin lines between the groups, the agent above each block.

    Number k has the k-th colour and name.
    """
    n_masks, rows, columns = blocks.shape
    n_lines, per_line = -(-n_masks // PER_LINE), min(n_masks, PER_LINE)
    ax = ax or new_axes(height=0.4 + TILE_HEIGHT * n_lines + TITLE_HEIGHT * bool(title))
    gap, line_gap = max(1, round(0.06 * columns)), max(2, round(rows / 5))
    canvas = np.full((n_lines * (rows + line_gap) - line_gap, per_line * (columns + gap) - gap), np.nan)
    for agent, block in enumerate(blocks):
        line, place = divmod(agent, PER_LINE)
        y, x = line * (rows + line_gap), place * (columns + gap)
        canvas[y : y + rows, x : x + columns] = block
        ax.vlines(x + np.arange(0, columns + 1, columns_per_group), y, y + rows, color="0.5", linewidth=0.4)
        ax.hlines([y, y + rows], x, x + columns, color="0.5", linewidth=0.4)
        ax.text(x + columns / 2, y - 0.3, f"agent {agent}", ha="center", va="bottom", fontsize=7)
    look: dict[str, Any] = {"cmap": ListedColormap(colors), "vmin": -0.5, "vmax": len(names) - 0.5, "rasterized": True}
    bar = {"ticks": range(len(names)), "label": label, "aspect": 15, "pad": 0.02}
    seaborn.heatmap(canvas, ax=ax, xticklabels=False, yticklabels=False, cbar_kws=bar, **look)
    color_bar = ax.figure.axes[-1]
    color_bar.set_yticklabels(names)
    height, width = canvas.shape
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1), ylabel=f"first {rows} output units")
    ax.set_xlabel(f"first {columns // columns_per_group} groups of four input weights")
    ax.set_title(title, pad=14)  # above the names of the agents
    return ax


def share_map(
    shares: Float[np.ndarray, "K columns"],
    ax: Axes | None = None,
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    chance: float | None = None,
) -> Axes:
    """Shares per cent, one line per agent (or whatever `labels` name), such as how often each action is taken.

    With `chance` that share is white, less is blue and more is red.
    """
    ax = ax or new_axes(height=0.7 + 0.2 * len(shares))
    colors = ("viridis", 0.0, max(0.5, float(shares.max()))) if chance is None else ("RdBu_r", 0.0, 2 * chance)
    return _numbers(shares, ".0%", ax, colors, columns, labels)


def usage_maps(usages: Mapping[str, Float[np.ndarray, "M 6"]], title: str = "") -> Figure:
    """How often each agent chose each pattern, a panel per layer; the scale marks 1/6, an even use, as white.

    `usages` has the shares by layer (`similarity.pattern_usage`); `title` says whose masks they are.
    """
    n_agents = len(next(iter(usages.values())))
    fig, axes = panels(len(usages), n_columns=3, height=0.6 + 0.16 * n_agents)
    for ax, (layer, shares) in zip(axes, usages.items(), strict=True):
        share_map(shares, ax, columns=PATTERN_NAMES, chance=1 / N_PATTERNS).set_title(layer)
    bar = fig.colorbar(axes[0].collections[0], ax=axes, aspect=30, pad=0.01, label="share of groups")
    bar.set_ticks([0.0, 1 / N_PATTERNS, 2 / N_PATTERNS], labels=["0", "1/6 (even)", "1/3"])
    bar.ax.axhline(1 / N_PATTERNS, color="black", linewidth=1.0)
    fig.supylabel("agent", fontsize="medium")
    fig.suptitle(title, fontsize="medium")
    return fig


def matrix_map(
    matrix: Float[np.ndarray, "K K"],
    ax: Axes | None = None,
    *,
    title: str = "",
    vmax: float = 1.0,
    labels: Sequence[str] = (),
    of: str = "agent",
) -> Axes:
    """A matrix over pairs of agents (or of what `of` says) with its numbers, on a colour scale from 0 to `vmax`."""
    ax = ax or new_axes(height=HALF_WIDTH, width=HALF_WIDTH)
    _numbers(matrix, ".2f", ax, ("viridis", 0.0, vmax), labels, labels)
    ax.set(aspect="equal", title=title, xlabel=of, ylabel=of)
    return ax


def _numbers(
    values: np.ndarray,
    number_format: str,
    ax: Axes,
    colors: tuple[str, float, float],
    columns: Sequence[str],
    labels: Sequence[str],
) -> Axes:
    """A heatmap with its numbers; names of columns and lines are their indices if there are none."""
    (cmap, vmin, vmax), size = colors, min(6.0, 60 / values.shape[1])
    look: dict[str, Any] = {"cmap": cmap, "vmin": vmin, "vmax": vmax, "cbar": False, "rasterized": True}
    look |= {"xticklabels": list(columns) or True, "yticklabels": list(labels) or True}
    seaborn.heatmap(values, annot=True, fmt=number_format, annot_kws={"size": size}, ax=ax, **look)
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    if max(map(len, columns), default=0) > SHORT:
        ax.set_xticklabels(ax.get_xticklabels(), rotation=45, rotation_mode="anchor", ha="right")
    return ax


def temperature_axis(ax: Axes, ylabel: str, chance: float) -> Axes:
    """Curves over the temperature of a draw: log axis, high temperatures left as in training, a grey line at chance."""
    ax.axhline(chance, color=GREY, linewidth=0.8, zorder=1)
    ax.set(xlabel="temperature τ", ylabel=ylabel, xscale="log", ylim=(-0.03, 1.03))
    ax.set_xticks([10, 5, 2, 1, 0.5, 0.2, 0.1], ["10", "5", "2", "1", "0.5", "0.2", "0.1"])
    ax.minorticks_off()
    ax.invert_xaxis()
    return ax
