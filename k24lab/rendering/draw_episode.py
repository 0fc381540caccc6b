"""Frames of an episode: the environment, and beside it who is who, what each agent does next, and the return so far."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from k24lab.analysis.style import GREY
from k24lab.envs.scene import Episode, Thing
from k24lab.rendering.draw_scene import DARK, TRAIL, SceneAxes, agent_color, text_color

WIDTH, HEIGHT = 7.3, 4.84  # inches, of a frame
# Parts of a frame: left, bottom, width and height in inches.
SCENE = (0.12, 0.32, 3.9, 3.9)
AGENTS = (4.3, 1.5, 2.85, 2.72)
RETURN = (4.72, 0.45, 2.3, 0.66)
LONG_TITLE = 58  # letters; longer ones are set smaller


class EpisodeDrawing:
    """One episode in a figure of WIDTH x HEIGHT inches; `subtitle` comes before the step in the second line.

    What stays the same in an episode is drawn once, so that a frame takes half the time.
    """

    def __init__(self, episode: Episode, title: str, subtitle: str, dpi: int):
        self._episode, self._subtitle, self.n_frames = episode, subtitle, episode.n_steps + 1
        self._totals = np.concatenate([[0.0], np.cumsum(episode.rewards, dtype=float)])  # return after 0 … T steps
        self._figure = Figure(figsize=(WIDTH, HEIGHT), dpi=dpi)
        self._figure.set_layout_engine("none")
        self._canvas = FigureCanvasAgg(self._figure)
        font_size = 11 if len(title) < LONG_TITLE else 8
        self._figure.text(0.016, 0.955, title, fontsize=font_size, weight="bold", va="center")
        scene, self._agents, self._curve = (self._add_axes(inches) for inches in (SCENE, AGENTS, RETURN))
        self._scene = SceneAxes(scene, episode.scenes, SCENE[2])
        self._prepare_agents()
        self._prepare_curve()
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(self._figure.bbox)
        self._still_artists = {artist for ax in self._figure.axes for artist in ax.get_children()}

    def frame(self, t: int) -> UInt8[np.ndarray, "H W 3"]:
        """The moment after t env steps, 0 to `episode.n_steps`."""
        episode = self._episode
        self._scene.draw(episode.scenes[max(t - TRAIL, 0) : t + 1])
        self._draw_agents(t)
        self._draw_curve(t)
        outcome = {None: "", True: ": won", False: ": not won"}[episode.won if t == episode.n_steps else None]
        step = f"{self._subtitle}step {t} of {episode.limit}{outcome}"
        self._curve.text(0.016, 0.905, step, fontsize=8.5, va="center", transform=self._figure.transFigure)
        self._canvas.restore_region(self._still)
        for ax in self._figure.axes:
            moving = [artist for artist in ax.get_children() if artist not in self._still_artists]
            for artist in sorted(moving, key=lambda artist: artist.zorder):
                ax.draw_artist(artist)
                artist.remove()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def _add_axes(self, inches: tuple[float, float, float, float]) -> Axes:
        left, bottom, width, height = inches
        return self._figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))

    def _prepare_agents(self) -> None:
        """A row for each agent, with its disc; columns for its type, if there are any, and its next action."""
        n_agents = len(self._episode.actions[0])
        self._typed = any(unit.label for unit in self._episode.scenes[0].of_kind("agent"))
        self._action_x = 1.77 if self._typed else 0.5
        self._row_height = min(AGENTS[3] / (n_agents + 1), 0.34)
        self._agents.set(xlim=(0, AGENTS[2]), ylim=(0, AGENTS[3]))
        self._agents.axis("off")
        for x, text in {0.02: "agent", self._action_x: "next action"}.items():
            self._write(x, -1, text, fontsize=7.5, color=GREY)
        if self._typed:
            self._write(0.5, -1, "type", fontsize=7.5, color=GREY)
        radius = min(0.13, 0.43 * self._row_height)
        for i in range(n_agents):
            color = agent_color(i)
            self._agents.add_artist(Circle((0.2, self._y(i)), radius, fc=color, ec="none"))
            look: dict[str, Any] = {"ha": "center", "weight": "bold", "fontsize": min(10.0, radius * 80)}
            self._write(0.2, i, str(i), color=text_color(color), **look)

    def _draw_agents(self, t: int) -> None:
        """Types, and what each agent does after t env steps."""
        episode = self._episode
        units = {unit.owners[0]: unit for unit in episode.scenes[t].of_kind("agent")}
        for i in range(len(episode.actions[0])):
            unit = units.get(i) or Thing("agent", 0.0, 0.0)  # an environment that draws itself has none
            if self._typed:
                self._write(0.5, i, unit.label, color=DARK)
            if not unit.alive:
                self._write(self._action_x, i, "dead", color=GREY)
            elif t < episode.n_steps:
                self._write(self._action_x, i, episode.actions[t][i])

    def _y(self, row: int) -> float:
        return AGENTS[3] - (row + 1.5) * self._row_height

    def _write(self, x: float, row: int, text: str, **look: Any) -> None:
        """A text in an agent's row; row -1 has the heads of the columns."""
        size = {"fontsize": min(10.0, self._row_height * 40), "va": "center_baseline"}
        self._agents.text(x, self._y(row), text, **{**size, **look})

    def _prepare_curve(self) -> None:
        """Axes that the whole episode's return fits in."""
        low, high = self._totals.min(), self._totals.max()
        pad = 0.08 * (high - low) or 0.5
        self._curve.set(xlim=(0, self._episode.limit * 1.02), ylim=(low - pad, high + pad))
        self._curve.locator_params(axis="x", nbins=5)
        self._curve.locator_params(axis="y", nbins=3)
        self._curve.tick_params(labelsize=7, length=2)
        self._curve.set_xlabel("env step", fontsize=7, labelpad=1)

    def _draw_curve(self, t: int) -> None:
        """The return so far, as a number and as a curve over the steps."""
        total = self._totals
        self._curve.plot(np.arange(t + 1), total[: t + 1], color=DARK, linewidth=1.4)
        self._curve.plot(t, total[t], color=DARK, marker="o", markersize=4, clip_on=False)
        where: dict[str, Any] = {"transform": self._curve.transAxes, "va": "bottom"}
        self._curve.text(0, 1.08, f"return so far {total[t]:.2f}", fontsize=9.5, **where)
