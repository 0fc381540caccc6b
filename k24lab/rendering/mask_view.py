"""One agent's mask of one layer at one time: its weights, what changed since the snapshot before, its patterns."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.pyplot import get_cmap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from k24lab.analysis.load import Patterns
from k24lab.analysis.similarity import flip_rate, hamming_distance, masks, pattern_entropy, pattern_usage
from k24lab.analysis.style import OKABE_ITO, SCREEN_DPI, TEXT_WIDTH
from k24lab.core.patterns import GROUP_SIZE, N_PATTERNS, PATTERN_NAMES

# Inches. A layout that is computed costs half of a redraw.
BOTTOM, TOP, LINE = 0.62, 0.34, 0.16  # of the panels; above them, with their titles; a line of the figure's title
PANEL_HEIGHT = 1.95
LEFTS_AND_WIDTHS = ((0.47, 1.82), (2.47, 1.82), (4.78, 0.65))  # mask, change, usage
TITLE_WIDTH = 115  # letters in a line
NAMED = 5  # other agents whose distances are written one by one

DROPPED = "white"  # in both maps
# Who keeps a weight that this agent keeps: colours of `mask_plots.mask_map`, of which many agents would have too many.
OWNERS = {
    "alone": get_cmap("viridis")(0.1),
    "with some": get_cmap("viridis")(0.55),
    "with all": get_cmap("viridis")(0.92),
}
CHANGES = {"kept": "#BBBBBB", "added": OKABE_ITO["blue"], "dropped": OKABE_ITO["vermillion"]}


class Window(NamedTuple):
    """The part of a layer that is drawn: large layers are illegible as a whole."""

    row: int = 0  # first output unit
    group: int = 0  # first group of four inputs
    rows: int = 32
    groups: int = 16

    def part(self, weights: np.ndarray) -> tuple[slice, slice]:
        """Where it lies in an array [out, in]."""
        n_out, n_in = weights.shape
        left = GROUP_SIZE * self.group
        return (
            slice(self.row, min(self.row + self.rows, n_out)),
            slice(left, min(left + GROUP_SIZE * self.groups, n_in)),
        )


WHOLE = Window(rows=sys.maxsize, groups=sys.maxsize // GROUP_SIZE)


class MaskView(NamedTuple):
    """What one agent's mask of a layer is, beside the snapshot before and the other agents' masks."""

    kept: Bool[np.ndarray, "out in"]
    n_owners: Integer[np.ndarray, "out in"]  # agents that keep each weight
    before: Bool[np.ndarray, "out in"] | None  # None at the first snapshot
    usage: Float[np.ndarray, " 6"]  # share of the groups that select each pattern
    flip_rate: float  # share of the groups whose pattern changed; NaN at the first snapshot
    entropy: float  # nats, mean over groups
    hamming: Float[np.ndarray, " M"]  # distance to each agent, 0 to itself


def mask_view(now: Patterns, before: Patterns | None, agent: int) -> MaskView:
    """The view of one agent (index of its mask), from all masks of a layer [M, out, G], now and at the last snapshot.

    All numbers are of the whole layer, groups that padding completes included.
    """
    kept = masks(now.index)
    return MaskView(
        kept=kept[agent],
        n_owners=kept.sum(axis=0),
        before=None if before is None else masks(before.index[agent]),
        usage=pattern_usage(now.index)[agent],
        flip_rate=float("nan") if before is None else float(flip_rate(before.index, now.index)[agent]),
        entropy=float(pattern_entropy(now.probs[agent : agent + 1])[0]),
        hamming=hamming_distance(now.index)[agent],
    )


def owner_codes(view: MaskView) -> Integer[np.ndarray, "out in"]:
    """0: dropped; else kept, 1 by this agent alone, 2 by some others too, 3 by all."""
    codes = np.where(view.n_owners == 1, 1, np.where(view.n_owners == len(view.hamming), 3, 2))
    return np.where(view.kept, codes, 0)


def change_codes(view: MaskView) -> Integer[np.ndarray, "out in"]:
    """0: dropped before and now; 1: kept both times, 2: added, 3: dropped now. All that is kept is 1 at first."""
    before = view.kept if view.before is None else view.before
    return np.where(view.kept, np.where(before, 1, 2), np.where(before, 3, 0))


def change_table(view: MaskView, window: Window) -> pd.DataFrame:
    """A line per weight of the part that is drawn: output, input, n_owners, change (a name of `CHANGES`, or none)."""
    part = window.part(view.kept)
    output, input_ = (axis[part].ravel() for axis in np.mgrid[: view.kept.shape[0], : view.kept.shape[1]])
    change = np.array(["none", *CHANGES])[change_codes(view)[part]].ravel()
    return pd.DataFrame({"output": output, "input": input_, "n_owners": view.n_owners[part].ravel(), "change": change})


def numbers(view: MaskView, agent: int, names: Sequence[str], of: str = "agent") -> str:
    """One line: flip rate, entropy and Hamming distances of the whole layer; `of` says whose masks they are."""
    flips = "" if np.isnan(view.flip_rate) else f"flip rate {view.flip_rate:.1%} · "
    others = [k for k in range(len(names)) if k != agent]
    far = view.hamming
    if not others:
        distance = ""
    elif len(others) <= NAMED:
        distance = f" · Hamming distance to {of} " + ", ".join(f"{names[k]}: {far[k]:.2f}" for k in others)
    else:
        near, away = min(others, key=far.__getitem__), max(others, key=far.__getitem__)
        ends = f"{far[near]:.2f} ({of} {names[near]}) to {far[away]:.2f} ({of} {names[away]})"
        distance = f" · Hamming distance to the others: mean {far[others].mean():.2f}, {ends}"
    return f"{flips}entropy {view.entropy:.2f} nats{distance}"


def draw_view(view: MaskView, window: Window, title: str = "", note: str = "", of: str = "agent") -> Figure:
    """Mask, change and pattern usage side by side, in a figure that pyplot knows nothing of and so never keeps."""
    lines = [*textwrap.wrap(title, TITLE_WIDTH), *textwrap.wrap(note, TITLE_WIDTH)]
    fig, (left, middle, right) = _panels(len(lines))
    fig.suptitle("\n".join(lines), fontsize=8, y=1 - 0.06 / fig.get_figheight(), va="top")
    weight_map(owner_codes(view), OWNERS, left, window=window)
    whole = view.kept[window.part(view.kept)].shape == view.kept.shape
    left.set_title(f"kept by this {of}" if whole else f"kept by this {of} (part of the layer)")
    weight_map(change_codes(view), CHANGES, middle, window=window)
    middle.set_title("first snapshot" if view.before is None else "since the snapshot before")
    middle.set_ylabel("")
    middle.tick_params(labelleft=False)
    usage_bars(view.usage, right)
    return fig


def _panels(n_lines: int) -> tuple[Figure, list[Axes]]:
    """An empty figure, high enough for a title of so many lines."""
    height = BOTTOM + PANEL_HEIGHT + TOP + LINE * n_lines
    fig = Figure(figsize=(TEXT_WIDTH, height), dpi=SCREEN_DPI)
    fig.set_layout_engine("none")
    places = [(x / TEXT_WIDTH, BOTTOM / height, w / TEXT_WIDTH, PANEL_HEIGHT / height) for x, w in LEFTS_AND_WIDTHS]
    return fig, [fig.add_axes(place) for place in places]


def weight_map(
    codes: Integer[np.ndarray, "out in"], colors: Mapping[str, Any], ax: Axes, *, window: Window = WHOLE
) -> Axes:
    """Part of a layer's weights: 0 white, k in the k-th of the named colours; thin lines between groups of four.

    The labels of the axes say which part it is.
    """
    (n_out, n_in), part = codes.shape, window.part(codes)
    (top, bottom), (left, right) = ((side.start, side.stop) for side in part)
    ax.imshow(
        codes[part],
        ListedColormap([DROPPED, *colors.values()]),
        vmin=0,
        vmax=len(colors),
        extent=(left, right, bottom, top),
        aspect="auto",
    )
    ax.vlines(np.arange(left, right + 1, GROUP_SIZE), top, bottom, color="0.35", linewidth=0.6)
    ax.hlines(np.arange(top, bottom + 1), left, right, color="0.8", linewidth=0.3)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_yticks(*_ticks(top, bottom, max(1, -(-(bottom - top) // 8))))
    ax.set_xticks(*_ticks(left, right, GROUP_SIZE * max(1, (right - left) // GROUP_SIZE // 4)))
    ax.set(xlabel=_range("input units", left, right, n_in), ylabel=_range("output units", top, bottom, n_out))
    ax.spines[:].set_visible(False)
    handles = [Patch(facecolor=color, edgecolor="0.5", linewidth=0.4, label=name) for name, color in colors.items()]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": len(colors)}
    ax.legend(handles=handles, handlelength=1.2, columnspacing=1.0, **place)
    return ax


def usage_bars(usage: Float[np.ndarray, " 6"], ax: Axes) -> Axes:
    """Share of the whole layer's groups that select each pattern, beside the 1/6 of an even use."""
    ax.barh(range(N_PATTERNS), usage, color="0.55", height=0.7)
    ax.axvline(1 / N_PATTERNS, color="black", linestyle=":", linewidth=0.9)
    ax.annotate("1/6", (1 / N_PATTERNS, -0.6), (2, 0), textcoords="offset points", va="bottom", fontsize=6.5)
    ax.set_yticks(range(N_PATTERNS), list(PATTERN_NAMES))
    ax.set(ylim=(N_PATTERNS - 0.5, -1.0), xlim=(0, max(0.35, 1.05 * float(usage.max()))))
    ax.xaxis.set_major_locator(MaxNLocator(2))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(title="patterns", xlabel="share of groups")
    return ax


def _ticks(first: int, end: int, step: int) -> tuple[np.ndarray, list[str]]:
    """In the middle of every `step`-th cell, and that cell's index."""
    cells = np.arange(first, end, step)
    return cells + 0.5, [str(cell) for cell in cells]


def _range(what: str, first: int, end: int, total: int) -> str:
    return f"all {total} {what}" if end - first == total else f"{what} {first} to {end - 1} of {total}"
