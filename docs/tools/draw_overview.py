"""Draws docs/overview.png, the picture of the README, from committed tables of RoleNav with 3 agents.

Run it from anywhere: `python docs/tools/draw_overview.py`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from k24lab.analysis.style import OKABE_ITO, PNG_DPI, paper_style
from k24lab.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
CURVES = ROOT / "figures" / "study" / "curves.csv"  # task, variant, t_env, mean, low, high, n
MASKS = ROOT / "figures" / "rolenav3" / "03_mask_patterns_masks.csv"  # agent, output, group, pattern
SHOWN = ("nops", "random24", "k24", "fups-id", "fups")
AGENT_COLORS = ("blue", "vermillion", "green")
WITHOUT_IDENTITY = 1.45  # no policy that is the same for all agents returns more
ROWS = 10  # output units of the mask that are shown


def draw_curves(ax: Axes) -> None:
    """Test return against env steps, with the 95 % interval of the mean over seeds."""
    table = pd.read_csv(CURVES).query("task == 'rolenav3'")
    for method in SHOWN:
        rows, look = table[table["variant"] == method], METHODS[method]
        steps = rows["t_env"] / 1000
        ax.plot(steps, rows["mean"], color=look.color, linestyle=look.linestyle, label=look.label)
        ax.fill_between(steps, rows["low"], rows["high"], color=look.color, alpha=0.15, linewidth=0)
    ax.axhline(WITHOUT_IDENTITY, color="0.5", linewidth=0.6, linestyle=":")
    ax.text(128, WITHOUT_IDENTITY + 0.06, "bound without identity", fontsize=6.5, color="0.4", ha="right")
    ax.set(
        title=f"RoleNav, 3 agents, {table['n'].max()} seeds, every method tuned",
        xlabel="env steps (thousands)",
        ylabel="test return",
        ylim=(-1.1, 3.2),
    )
    ax.legend(loc="lower right", ncols=2, handlelength=2.2)


def draw_mask(ax: Axes, patterns: np.ndarray, color: str) -> None:
    """What one agent keeps of a layer: [outputs, inputs] of 0 and 1, with a line after each group of four."""
    image = np.where(patterns[..., None] == 1, to_rgb(color), 1.0)
    ax.imshow(image, aspect="auto", interpolation="nearest")
    for edge in range(4, patterns.shape[1], 4):
        ax.axvline(edge - 0.5, color="0.6", linewidth=0.5)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6", linewidth=0.5)


def draw_overview(target: Path) -> None:
    """Learning curves on the left; on the right, the masks of the three agents over the same weights."""
    table = pd.read_csv(MASKS, dtype={"pattern": str})
    with paper_style():
        figure = plt.figure(figsize=(7.5, 2.7))
        left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
        draw_curves(left.subplots())
        axes = right.subplots(len(AGENT_COLORS), 1)
        for agent, (ax, name) in enumerate(zip(axes, AGENT_COLORS, strict=True)):
            rows = table[(table["agent"] == agent) & (table["output"] < ROWS)].sort_values(["output", "group"])
            kept = np.array([[int(bit) for bit in pattern] for pattern in rows["pattern"]]).reshape(ROWS, -1)
            draw_mask(ax, kept, OKABE_ITO[name])
            ax.set_ylabel(f"agent {agent}")
        axes[0].set_title("K-2:4: each agent keeps two of every four weights")
        axes[-1].set_xlabel("input units in groups of four (part of layer fc2)")
        figure.savefig(target, dpi=PNG_DPI, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    draw_overview(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "overview.png")
