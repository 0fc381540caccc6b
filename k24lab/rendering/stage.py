"""An episode picture by picture: the world, and beside it who is who, what each agent does, the return so far.

What stays the same in an episode is drawn once; a picture then takes some milliseconds.
"""

import numpy as np
from jaxtyping import UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle

from k24lab.analysis.style import GREY
from k24lab.envs.scene import Episode, Thing
from k24lab.rendering.scene_plots import TRAIL, agent_color, draw_world, frame_world, ink, paler, view_of

WIDTH, HEIGHT = 7.3, 4.84  # inches
WORLD = (0.12, 0.32, 3.9, 3.9)  # left, bottom, width, height, in inches
PANEL = (4.3, 1.5, 2.85, 2.72)
CURVE = (4.72, 0.45, 2.3, 0.66)
ONE_COLUMN = 12  # agents; more are listed in two columns
LONG_TITLE = 58  # letters; longer ones are set smaller
DARK = "#404040"


class Stage:
    """One episode in a figure of WIDTH x HEIGHT inches.

    Args:
        episode: all of it.
        title: first line: what plays, and where.
        subtitle: what comes before the step in the second line.
        dpi: pixels per inch.
    """

    def __init__(self, episode: Episode, title: str, subtitle: str, dpi: int):
        self._episode, self._subtitle = episode, subtitle
        self._figure = Figure(figsize=(WIDTH, HEIGHT), dpi=dpi, layout="none")  # type: ignore[arg-type]
        self._canvas = FigureCanvasAgg(self._figure)
        self._figure.text(
            0.016, 0.955, title, fontsize=11 if len(title) < LONG_TITLE else 8, weight="bold", va="center"
        )
        self._view = view_of(episode.scenes)
        self._world, self._panel, self._curve = (self._axes(inches) for inches in (WORLD, PANEL, CURVE))
        frame_world(episode.scenes[0], self._view, self._world)
        frame_agents(episode, self._panel)
        frame_return(episode, self._curve)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(self._figure.bbox)

    def picture(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """The moment after t env steps, 0 to `episode.n_steps`."""
        episode = self._episode
        before = {axes: set(axes.get_children()) for axes in (self._world, self._panel, self._curve)}
        draw_world(episode.scenes[max(t - TRAIL, 0) : t + 1], self._view, self._world)
        draw_agents(episode, t, self._panel)
        draw_return(episode, t, self._curve)
        step = f"{self._subtitle}step {t} of {episode.limit}{_outcome(episode, t)}"
        self._world.text(0.016, 0.905, step, fontsize=8.5, va="center", transform=self._figure.transFigure)
        self._canvas.restore_region(self._still)
        for axes, there in before.items():
            _draw_and_remove([artist for artist in axes.get_children() if artist not in there], axes)
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def _axes(self, inches: tuple[float, float, float, float]) -> Axes:
        left, bottom, width, height = inches
        return self._figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def _draw_and_remove(artists: list[Artist], axes: Axes) -> None:
    for artist in sorted(artists, key=lambda artist: artist.zorder):
        axes.draw_artist(artist)
        artist.remove()


def _outcome(episode: Episode, t: int) -> str:
    if t < episode.n_steps:
        return ""
    return {None: "", True: ": won", False: ": not won"}[episode.won]


class Table:
    """Where the list of agents has its columns and rows, in inches of PANEL."""

    def __init__(self, episode: Episode):
        n_agents = len(episode.actions[0])
        columns = 1 if n_agents <= ONE_COLUMN else 2
        self.n_rows = -(-n_agents // columns)
        self.n_columns = columns
        self.width = PANEL[2] / columns
        self.height = min(PANEL[3] / (self.n_rows + 1), 0.34)
        self.typed = any(unit.label for unit in episode.scenes[0].of_kind("agent"))
        self.text_size = min(10.0, self.height * 40) - (1.0 if columns > 1 else 0.0)
        self.kind_x, self.action_x = 0.5, 0.62 * self.width if self.typed else 0.5

    def place(self, i: int) -> tuple[float, float]:
        """Left end and middle of agent i's row."""
        column, row = divmod(i, self.n_rows)
        return column * self.width, PANEL[3] - (row + 1.5) * self.height


def frame_agents(episode: Episode, ax: Axes) -> Axes:
    """The heads of the columns, and each agent's disc in its colour."""
    table = Table(episode)
    ax.set(xlim=(0, PANEL[2]), ylim=(0, PANEL[3]))
    ax.axis("off")
    action = "next action" if table.n_columns == 1 else "next"
    heads = {0.02: "agent", table.action_x: action} | ({table.kind_x: "type"} if table.typed else {})
    for column in range(table.n_columns):
        for x, text in heads.items():
            ax.text(column * table.width + x, PANEL[3] - table.height / 2, text, fontsize=7.5, color=GREY, va="center")
    for i in range(len(episode.actions[0])):
        x, y = table.place(i)
        radius = min(0.13, 0.43 * table.height)
        ax.add_artist(Circle((x + 0.2, y), radius, fc=agent_color(i), ec="none"))
        _text(ax, x + 0.2, y, str(i), min(10.0, radius * 80), color=ink(agent_color(i)), ha="center", weight="bold")
    return ax


def draw_agents(episode: Episode, t: int, ax: Axes) -> Axes:
    """Each agent's type or role if it has one, its health, and what it does next."""
    table, units = Table(episode), {unit.owners[0]: unit for unit in episode.scenes[t].of_kind("agent")}
    for i in range(len(episode.actions[0])):
        unit = units.get(i) or Thing("agent", 0.0, 0.0)  # a world that draws itself has none
        x, y = table.place(i)
        if table.typed:
            _text(ax, x + table.kind_x, y, unit.label, table.text_size, color=DARK)
        if not unit.alive:
            ax.add_artist(Circle((x + 0.2, y), 0.15, fc="white", alpha=0.65))
            _text(ax, x + table.action_x, y, "dead", table.text_size, color=GREY)
        elif t < episode.n_steps:
            _text(ax, x + table.action_x, y, episode.actions[t][i], table.text_size, color="black")
        if unit.health is not None and unit.alive:
            bar, length = (x + table.kind_x, y - 0.44 * table.height), 0.55 * (table.action_x - table.kind_x)
            ax.add_artist(Rectangle(bar, length, 0.03, fc=paler(GREY, 0.4), ec="none"))
            ax.add_artist(Rectangle(bar, length * unit.health, 0.03, fc=agent_color(i), ec="none"))
    return ax


def _text(ax: Axes, x: float, y: float, text: str, size: float, **look: str) -> None:
    ax.text(x, y, text, fontsize=size, va="center_baseline", **look)  # type: ignore[arg-type]


def _totals(episode: Episode) -> np.ndarray:
    """The return after 0 … T steps."""
    return np.concatenate([[0.0], np.cumsum(episode.rewards, dtype=float)])


def frame_return(episode: Episode, ax: Axes) -> Axes:
    """Axes that the whole episode's return fits in."""
    low, high = float(_totals(episode).min()), float(_totals(episode).max())
    pad = 0.08 * (high - low) or 0.5
    ax.set(xlim=(0, episode.limit * 1.02), ylim=(low - pad, high + pad))
    ax.locator_params(axis="x", nbins=5)
    ax.locator_params(axis="y", nbins=3)
    ax.tick_params(labelsize=7, length=2)
    ax.set_xlabel("env step", fontsize=7, labelpad=1)
    return ax


def draw_return(episode: Episode, t: int, ax: Axes) -> Axes:
    """The return so far, as a number and as a curve over the steps."""
    total = _totals(episode)
    ax.add_line(Line2D(np.arange(t + 1), total[: t + 1], color=DARK, linewidth=1.4))
    ax.add_line(Line2D([t], total[t : t + 1], color=DARK, marker="o", markersize=4, clip_on=False))
    where = {"transform": ax.transAxes, "va": "bottom", "clip_on": False}
    ax.text(0, 1.08, f"return so far {total[t]:.2f}", fontsize=9.5, **where)  # type: ignore[arg-type]
    return ax
