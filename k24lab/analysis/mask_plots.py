"""Pictures of masks and distances; every function draws on `ax` (a new one if None) and returns it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.pyplot import get_cmap

from k24lab.analysis.curve_plots import new_axes
from k24lab.analysis.similarity import masks
from k24lab.analysis.style import HALF_WIDTH, OKABE_ITO
from k24lab.core.pattern_table import GROUP_SIZE, N_PATTERNS, PATTERN_NAMES

PATTERN_COLORS = ListedColormap([OKABE_ITO[c] for c in ("orange", "sky", "green", "yellow", "blue", "vermillion")])
TILE_HEIGHT = 1.25  # inches, one line of agents side by side
MANY = 6  # columns beyond which numbers lose their leading zero
SHORT = 3  # letters that stand under a column unturned
PER_LINE = 4  # agents side by side before a new line begins


def mask_map(index: Integer[np.ndarray, "M out G"], ax: Axes | None = None, *, rows: int = 16, groups: int = 8) -> Axes:
    """The first `rows` x 4 `groups` weights of a layer, agents side by side: dropped ones white, kept ones coloured.

    The colour says how many agents keep that weight: dark is this agent's alone, bright is common to all.
    """
    kept = masks(index[:, :rows, :groups])
    owners = np.where(kept, kept.sum(axis=0), 0)  # [M, rows, 4 groups]
    n_masks = len(index)
    colors = ListedColormap(["white", *get_cmap("viridis")(np.linspace(0.1, 0.9, n_masks))])
    norm = BoundaryNorm(np.arange(-0.5, n_masks + 1), n_masks + 1)
    ax = _tiles(owners, colors, norm, ax)
    _color_bar(ax, colors, norm, ["dropped", *map(str, range(1, n_masks + 1))], "agents that keep the weight")
    return ax


def pattern_map(
    index: Integer[np.ndarray, "M out G"], ax: Axes | None = None, *, rows: int = 16, groups: int = 16
) -> Axes:
    """The pattern chosen for the first `rows` x `groups` groups of a layer, agents side by side, a colour a pattern."""
    norm = BoundaryNorm(np.arange(-0.5, N_PATTERNS), N_PATTERNS)
    ax = _tiles(index[:, :rows, :groups].astype(int), PATTERN_COLORS, norm, ax, cells_per_group=1)
    _color_bar(ax, PATTERN_COLORS, norm, list(PATTERN_NAMES), "pattern (1: kept)")
    return ax


def usage_map(
    usage: Float[np.ndarray, "M 6"], ax: Axes | None = None, *, labels: Sequence[str] = (), title: str = ""
) -> Axes:
    """Share of the groups that select each pattern, per cent, one line per agent; white is the 1/6 of chance."""
    ax = ax or new_axes(height=0.7 + 0.2 * len(usage), width=HALF_WIDTH)
    colors, norm = get_cmap("RdBu_r"), Normalize(0, 2 / N_PATTERNS)
    _annotated(ax, usage, colors, norm, "{:.0%}")
    ax.set_xticks(range(N_PATTERNS), list(PATTERN_NAMES), rotation=45, rotation_mode="anchor", ha="right")
    ax.set_yticks(range(len(usage)), labels or agent_labels(len(usage)))
    ax.set_title(title)
    return ax


def matrix_map(
    matrix: Float[np.ndarray, "K K"],
    ax: Axes | None = None,
    *,
    title: str = "",
    vmin: float = 0.0,
    vmax: float = 1.0,
    labels: Sequence[str] = (),
    of: str = "agent",
) -> Axes:
    """A matrix over pairs of agents (or of what `of` says) with its numbers.

    Give matrices to be compared the same `vmin` and `vmax`.
    """
    ax = ax or new_axes(height=HALF_WIDTH, width=HALF_WIDTH)
    _annotated(ax, matrix, get_cmap("viridis"), Normalize(vmin, vmax), "{:.2f}")
    names = labels or agent_labels(len(matrix))
    turned: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "ha": "right"}
    ax.set_xticks(range(len(matrix)), names, **(turned if max(map(len, names)) > SHORT else {}))
    ax.set_yticks(range(len(matrix)), names)
    ax.set(aspect="equal", title=title, xlabel=of, ylabel=of)
    return ax


def share_map(
    shares: Float[np.ndarray, "K A"],
    ax: Axes | None = None,
    *,
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    xlabel: str = "action",
    ylabel: str = "agent",
    title: str = "",
) -> Axes:
    """Shares per cent, one line per agent (or whatever `labels` name): how often each action is taken."""
    ax = ax or new_axes(height=0.7 + 0.2 * len(shares))
    _annotated(ax, shares, get_cmap("viridis"), Normalize(0, max(0.5, float(shares.max()))), "{:.0%}")
    ax.set_xticks(range(shares.shape[1]), columns or [str(action) for action in range(shares.shape[1])])
    ax.set_yticks(range(len(shares)), labels or agent_labels(len(shares)))
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def agent_labels(n_agents: int) -> list[str]:
    """`0`, `1`, ...: agents by their index, as everywhere in the code."""
    return [str(agent) for agent in range(n_agents)]


def _tiles(
    blocks: Integer[np.ndarray, "M rows cols"],
    colors: Colormap,
    norm: BoundaryNorm,
    ax: Axes | None,
    cells_per_group: int = GROUP_SIZE,
) -> Axes:
    """Blocks side by side, `PER_LINE` in a line, thin lines between the groups, the agent above each block."""
    n_masks, rows, cols = blocks.shape
    lines = -(-n_masks // PER_LINE)
    ax = ax or new_axes(height=0.4 + TILE_HEIGHT * lines)
    gap, line_gap = max(1, round(0.06 * cols)), max(2.0, rows / 5)
    for agent, block in enumerate(blocks):
        line, place = divmod(agent, PER_LINE)
        x, y = place * (cols + gap), line * (rows + line_gap)
        ax.pcolormesh(x + np.arange(cols + 1), y + np.arange(rows + 1), block, cmap=colors, norm=norm, rasterized=True)
        edges = x + np.arange(0, cols + 1, cells_per_group)
        ax.vlines(edges, y, y + rows, color="0.5", linewidth=0.4)
        ax.hlines([y, y + rows], x, x + cols, color="0.5", linewidth=0.4)
        ax.text(x + cols / 2, y - 0.3, f"agent {agent}", ha="center", va="bottom", fontsize=7)
    width, height = min(n_masks, PER_LINE) * (cols + gap) - gap, lines * (rows + line_gap) - line_gap
    ax.set(xlim=(-0.1, width + 0.1), ylim=(height + 0.1, -0.1))
    ax.set(xticks=[], yticks=[], ylabel=f"first {rows} output units")
    ax.set_xlabel(f"first {cols // cells_per_group} groups of four input weights")
    ax.spines[:].set_visible(False)
    return ax


def _color_bar(ax: Axes, colors: Colormap, norm: BoundaryNorm, names: Sequence[str], label: str) -> None:
    """A bar of discrete colours with a name in the middle of each."""
    bar = ax.figure.colorbar(
        ScalarMappable(norm, colors), ax=ax, ticks=range(len(names)), label=label, aspect=15, pad=0.02
    )
    bar.ax.set_yticklabels(names)
    bar.ax.tick_params(length=0)


def _annotated(ax: Axes, values: np.ndarray, colors: Colormap, norm: Normalize, form: str) -> None:
    """Heatmap with every number written in black or white, whichever reads better on its cell."""
    n_rows, n_cols = values.shape
    ax.pcolormesh(
        np.arange(n_cols + 1) - 0.5, np.arange(n_rows + 1) - 0.5, values, cmap=colors, norm=norm, rasterized=True
    )
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (row, col), value in np.ndenumerate(values):
        red, green, blue, _ = colors(norm(value))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        text = form.format(value)
        text = text.removeprefix("0") if n_cols > MANY and "." in text else text  # .42: room for ten agents
        ax.text(col, row, text, ha="center", va="center", color=ink, fontsize=min(6.0, 60 / n_cols))
