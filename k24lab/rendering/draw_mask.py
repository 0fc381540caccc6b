"""One agent's mask of one layer at one time: its weights, what changed since the snapshot before, its patterns."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Integer
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.pyplot import get_cmap
from matplotlib.ticker import PercentFormatter

from k24lab.analysis.load import Patterns
from k24lab.analysis.similarity import flip_rate, hamming_distance, masks, pattern_entropy, pattern_usage
from k24lab.analysis.style import OKABE_ITO, SCREEN_DPI, TEXT_WIDTH
from k24lab.core.patterns import GROUP_SIZE, N_PATTERNS, PATTERN_NAMES

Part = tuple[slice, slice]  # of a layer, [out, in]: large layers are illegible as a whole

TITLE_WIDTH = 115  # letters in a line
# A layout that is computed costs half of a redraw.
LAYOUT = {"left": 0.085, "right": 0.985, "bottom": 0.2, "top": 0.75, "wspace": 0.26, "width_ratios": (1.82, 1.82, 0.65)}

# What colours stand for, by code: code 0, dropped, is white.
OWNERS = {
    "alone": get_cmap("viridis")(0.1),
    "with some": get_cmap("viridis")(0.55),
    "with all": get_cmap("viridis")(0.92),
}
CHANGES = {"kept": "#BBBBBB", "added": OKABE_ITO["blue"], "dropped": OKABE_ITO["vermillion"]}


@dataclass(frozen=True)
class MaskView:
    """What one agent's mask of a layer is, beside the snapshot before and the other agents' masks."""

    kept: Bool[np.ndarray, "out in"]
    n_owners: Integer[np.ndarray, "out in"]  # agents that keep each weight
    before: Bool[np.ndarray, "out in"] | None  # None at the first snapshot
    usage: Float[np.ndarray, " 6"]  # share of the groups that select each pattern
    flip_rate: float  # share of the groups whose pattern changed; NaN at the first snapshot
    entropy: float  # nats, mean over groups
    hamming: Float[np.ndarray, " M"]  # distance to each agent, 0 to itself

    def owner_codes(self) -> Integer[np.ndarray, "out in"]:
        """0: dropped; else kept, 1 by this agent alone, 2 by some others too, 3 by all."""
        codes = np.where(self.n_owners == 1, 1, np.where(self.n_owners == len(self.hamming), 3, 2))
        return np.where(self.kept, codes, 0)

    def change_codes(self) -> Integer[np.ndarray, "out in"]:
        """0: dropped before and now; 1: kept both times, 2: added, 3: dropped now. At first all that is kept is 1."""
        before = self.kept if self.before is None else self.before
        return np.select([self.kept & before, self.kept, before], [1, 2, 3], 0)


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


def change_table(view: MaskView, part: Part) -> pd.DataFrame:
    """A line per weight of the part that is drawn: output, input, n_owners, change (a name of `CHANGES`, or none)."""
    output, input_ = np.indices(view.kept.shape)[:, *part].reshape(2, -1)
    change = np.array(["none", *CHANGES])[view.change_codes()[part]].ravel()
    return pd.DataFrame({"output": output, "input": input_, "n_owners": view.n_owners[part].ravel(), "change": change})


def describe(view: MaskView, agent: int, names: Sequence[str], of: str = "agent") -> str:
    """One line: flip rate, entropy and Hamming distances of the whole layer; `of` says whose masks they are."""
    parts = [] if np.isnan(view.flip_rate) else [f"flip rate {view.flip_rate:.1%}"]
    parts.append(f"entropy {view.entropy:.2f} nats")
    if len(names) > 1:
        far = {name: d for k, (name, d) in enumerate(zip(names, view.hamming, strict=True)) if k != agent}
        near, away = min(far, key=far.__getitem__), max(far, key=far.__getitem__)
        ends = f"{far[near]:.2f} ({of} {near}) to {far[away]:.2f} ({of} {away})"
        parts.append(f"Hamming distance to the others: {ends}")
    return " · ".join(parts)


def draw_mask(view: MaskView, part: Part, title: str = "", note: str = "", of: str = "agent") -> Figure:
    """Mask, change and pattern usage side by side, in a figure that pyplot does not keep."""
    fig = Figure(figsize=(TEXT_WIDTH, 3.2), dpi=SCREEN_DPI)
    fig.set_layout_engine("none")
    left, middle, right = fig.subplots(1, 3, gridspec_kw=LAYOUT)
    lines = [*textwrap.wrap(title, TITLE_WIDTH), *textwrap.wrap(note, TITLE_WIDTH)]
    fig.suptitle("\n".join(lines), fontsize=8, y=0.98, va="top")
    _draw_weights(view.owner_codes(), part, OWNERS, left)
    whole = view.kept[part].shape == view.kept.shape
    left.set_title(f"kept by this {of}" if whole else f"kept by this {of} (part of the layer)")
    _draw_weights(view.change_codes(), part, CHANGES, middle)
    middle.set_title("first snapshot" if view.before is None else "since the snapshot before")
    middle.set_ylabel("")
    middle.tick_params(labelleft=False)
    _draw_usage(view.usage, right)
    return fig


def _draw_weights(codes: Integer[np.ndarray, "out in"], part: Part, colors: Mapping[str, Any], ax: Axes) -> None:
    """Part of a layer's weights: 0 white, k in the k-th of the named colours; thin lines between groups of four."""
    shown, (top, left) = codes[part], (side.start for side in part)
    bottom, right = top + shown.shape[0], left + shown.shape[1]
    look: dict[str, Any] = {"vmin": 0, "vmax": len(colors), "extent": (left, right, bottom, top), "aspect": "auto"}
    ax.imshow(shown, ListedColormap(["white", *colors.values()]), **look)
    ax.vlines(np.arange(left, right + 1, GROUP_SIZE), top, bottom, color="0.35", linewidth=0.6)
    ax.hlines(np.arange(top, bottom + 1), left, right, color="0.8", linewidth=0.3)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    rows = np.arange(top, bottom, max(1, -(-(bottom - top) // 8)))
    columns = np.arange(left, right, GROUP_SIZE * max(1, (right - left) // GROUP_SIZE // 4))
    ax.set_yticks(rows + 0.5, rows.tolist())  # in the middle of a cell
    ax.set_xticks(columns + 0.5, columns.tolist())
    n_out, n_in = codes.shape
    ax.set(xlabel=_range("input units", left, right, n_in), ylabel=_range("output units", top, bottom, n_out))
    ax.spines[:].set_visible(False)
    handles = [Patch(facecolor=color, edgecolor="0.5", linewidth=0.4, label=name) for name, color in colors.items()]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": len(colors)}
    ax.legend(handles=handles, handlelength=1.2, columnspacing=1.0, **place)


def _draw_usage(usage: Float[np.ndarray, " 6"], ax: Axes) -> None:
    """Share of the whole layer's groups that select each pattern, beside the 1/6 of an even use."""
    ax.barh(range(N_PATTERNS), usage, color="0.55", height=0.7)
    ax.axvline(1 / N_PATTERNS, color="black", linestyle=":", linewidth=0.9)
    ax.set_yticks(range(N_PATTERNS), list(PATTERN_NAMES))
    ax.set(ylim=(N_PATTERNS - 0.5, -1.0), xlim=(0, max(0.35, 1.05 * float(usage.max()))))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(title="patterns (1/6)", xlabel="share of groups", xticks=(0, 0.2))


def _range(what: str, first: int, end: int, total: int) -> str:
    return f"all {total} {what}" if end - first == total else f"{what} {first} to {end - 1} of {total}"
