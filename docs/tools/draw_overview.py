"""Draws docs/overview.png, the picture of the README: RoleNav with 8 agents, curves of the study and masks of a team.

Run it from anywhere: `python docs/tools/draw_overview.py`.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from k24lab.analysis.references import SCRIPTED, known_returns
from k24lab.analysis.style import PNG_DPI, paper_style
from k24lab.core.pattern_table import PATTERNS_24
from k24lab.inference.freeze import load_team
from k24lab.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
CURVES = ROOT / "figures" / "study" / "curves.csv"  # task, variant, t_env, mean, low, high, n
SHOWN = ("nops", "k24-alpha", "random24", "fups-id", "gains24", "fups")
AGENTS = 3  # of the eight, whose masks are shown
ROWS, GROUPS = 10, 6  # output units and groups of four inputs of them


def draw_curves(ax: Axes) -> None:
    """Test return against env steps, with the 95 % interval of the mean over seeds."""
    table = pd.read_csv(CURVES).query("task == 'rolenav8'")
    for method in SHOWN:
        rows, look = table[table["variant"] == method], METHODS[method]
        steps = rows["t_env"] / 1000
        ax.plot(steps, rows["mean"], color=look.color, linestyle=look.linestyle, label=look.label)
        ax.fill_between(steps, rows["low"], rows["high"], color=look.color, alpha=0.15, linewidth=0)
    best = known_returns("rolenav:n_agents=8")[SCRIPTED]
    ax.axhline(best, color="0.5", linewidth=0.6, linestyle=":")
    ax.text(0, best + 0.1, SCRIPTED, fontsize=6.5, color="0.4")
    ax.set(
        title=f"RoleNav, 8 agents, {table['n'].max()} seeds, every method tuned",
        xlabel="env steps (thousands)",
        ylabel="test return",
        ylim=(-1.5, 9),
    )
    ax.legend(loc="lower right", bbox_to_anchor=(1, -0.02), ncols=2, handlelength=2.2)


def draw_mask(ax: Axes, kept: np.ndarray) -> None:
    """What one agent keeps of a layer: [outputs, inputs] of 0 and 1, with a line after each group of four."""
    ax.imshow(1 - 0.75 * kept, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for edge in range(4, kept.shape[1], 4):
        ax.axvline(edge - 0.5, color="0.6", linewidth=0.5)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.6", linewidth=0.5)


def draw_overview(target: Path) -> None:
    """Learning curves on the left; on the right, the masks of three agents over the same weights."""
    patterns = load_team("rolenav8").layers["fc2"].patterns
    kept = np.array(PATTERNS_24)[patterns.long().numpy()[:AGENTS, :ROWS, :GROUPS]].reshape(AGENTS, ROWS, -1)
    with paper_style():
        figure = plt.figure(figsize=(7.5, 2.7))
        left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
        draw_curves(left.subplots())
        axes = right.subplots(AGENTS, 1)
        for agent, ax in enumerate(axes):
            draw_mask(ax, kept[agent])
            ax.set_ylabel(f"agent {agent}")
        axes[0].set_title("K-2:4 (α only): each agent keeps two of every four weights")
        axes[-1].set_xlabel("input units in groups of four (part of layer fc2)")
        figure.savefig(target, dpi=PNG_DPI, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    draw_overview(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "overview.png")
