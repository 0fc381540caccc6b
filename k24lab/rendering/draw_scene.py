"""A scene in matplotlib axes: agents in their colours, the way that they came, and what else there is."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle, RegularPolygon, Wedge

from k24lab.analysis.style import GREY, OKABE_ITO, paler
from k24lab.envs.scene import Kind, Scene, Thing

TRAIL = 12  # env steps that an agent's way is seen
OWNED = "goal, in the colours of its agents"
MARGIN = 1.6  # around all things, in radii of the smallest disc
DARK, LIGHT = "#404040", "#D0D0D0"

# Okabe and Ito's colours, then some of Tol's muted scheme and darker ones; the index on the disc tells the rest.
_AGENT_COLORS = (
    *(OKABE_ITO[name] for name in ("blue", "orange", "green", "purple", "vermillion", "sky", "yellow")),
    *("#332288", "#882255", "#999933", "#44AA99", "#8C6D31", "#CC6677", "#5D3A9B", "#DDCC77", "#661100"),
)
_FILL: dict[Kind, str] = {"opponent": DARK, "obstacle": LIGHT, "object": "#9A9A9A"}
_ORDER: dict[Kind, float] = {
    **{"obstacle": 1.0, "landmark": 2.0, "goal": 3.0},  # trails are at 4
    **{"object": 5.0, "opponent": 6.0, "agent": 7.0},
}
_LEGEND: dict[Kind, dict[str, Any]] = {
    "goal": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": GREY, "markeredgewidth": 2},
    "landmark": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": GREY},
    "opponent": {"marker": "D", "markerfacecolor": DARK, "markeredgecolor": DARK},
    "obstacle": {"marker": "s", "markerfacecolor": LIGHT, "markeredgecolor": LIGHT},
    "object": {"marker": "s", "markerfacecolor": _FILL["object"], "markeredgecolor": DARK},
}


def agent_color(i: int) -> str:
    """The colour of agent i, in every environment; after sixteen agents the colours start again."""
    return _AGENT_COLORS[i % len(_AGENT_COLORS)]


def text_color(background: str) -> str:
    """Black on light colours, white on dark ones."""
    return "black" if np.dot(to_rgb(background), (0.299, 0.587, 0.114)) > 0.55 else "white"


class SceneAxes:
    """Axes for all scenes of one episode: frame, limits and legend are set here; `ax` is a square of side `inches`."""

    def __init__(self, ax: Axes, scenes: Sequence[Scene], inches: float):
        self._ax = ax
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color=LIGHT)
        picture = scenes[0].picture
        if picture is None:
            x, y, half, self._smallest = _square_around(scenes)
            ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
        else:  # the environment draws itself: units are pixels, y points down
            height, width = picture.shape[:2]
            half, self._smallest = max(height, width) / 2, 0.0
            ax.set(xlim=(width / 2 - half, width / 2 + half), ylim=(height / 2 + half, height / 2 - half))
        self._points = 72 * inches / (2 * half)  # of a font, in a unit of the scene
        _add_legend(scenes[0], ax)

    def draw(self, recent: Sequence[Scene]) -> None:
        """Add the last of these scenes, and the way that led from the first to it."""
        scene = recent[-1]
        if scene.picture is not None:
            height, width = scene.picture.shape[:2]
            image = AxesImage(self._ax, extent=(0, width, height, 0), origin="upper")  # imshow would change the limits
            image.set_data(scene.picture)
            self._ax.add_image(image)
            return
        self._draw_trails(recent)
        units = scene.of_kind("agent", "opponent")
        for k, thing in enumerate(scene.things):
            order = _ORDER[thing.kind] + k / (len(scene.things) + 1)  # a disc covers the number of one below, too
            if thing.box is not None:
                self._draw_box(thing, thing.box, order)
            if thing in units:
                self._draw_unit(thing, order)
            elif thing.box is None and thing.kind == "goal":
                self._draw_goal(thing, units, order)
            elif thing.box is None:
                face, edge = ("none", GREY) if thing.kind == "landmark" else (_color(thing), _edge(thing))
                radius = max(thing.radius, self._smallest / 2)
                self._ax.add_artist(Circle((thing.x, thing.y), radius, fc=face, ec=edge, zorder=order))

    def _draw_trails(self, recent: Sequence[Scene]) -> None:
        """Lines that fade into the past; the dead leave none."""
        segments, colors = [], []
        moving = [scene.of_kind("agent", "opponent") for scene in recent]
        for k, (before, after) in enumerate(itertools.pairwise(moving), start=1):
            for a, b in zip(before, after, strict=True):
                if b.alive:
                    segments.append([(a.x, a.y), (b.x, b.y)])
                    colors.append(paler(_color(b), 0.7 * k / len(recent)))
        trails = LineCollection(segments, colors=colors, linewidths=2.2, zorder=4)
        self._ax.add_collection(trails, autolim=False)

    def _draw_box(self, thing: Thing, box: tuple[float, float], order: float) -> None:
        """A box where it is turned to; a line if it has no width."""
        color, (length, width) = _color(thing), box
        look: dict[str, Any] = {"fc": color, "ec": _edge(thing)}
        if width == 0:
            look = {"ec": DARK, "linewidth": 2}
        elif thing.kind in ("landmark", "goal"):
            look = {"fc": paler(color, 0.15), "ec": color}
        turn: dict[str, Any] = {"angle": np.degrees(thing.angle), "rotation_point": "center"}
        corner = thing.x - length / 2, thing.y - width / 2
        self._ax.add_artist(Rectangle(corner, length, width, zorder=order, **turn, **look))

    def _draw_goal(self, goal: Thing, units: Sequence[Thing], order: float) -> None:
        """A ring with a part in the colour of each agent that it belongs to, wide enough to be seen around one."""
        inner, rim = max(goal.radius, self._smallest), 0.45 * self._smallest
        colors = [agent_color(i) for i in goal.owners] or [GREY]
        ends = np.linspace(90, 450, len(colors) + 1)
        for color, (start, end) in zip(colors, itertools.pairwise(ends), strict=True):
            self._draw_ring(goal, inner + rim, rim, color, order, start, end)
        # Half a number behind a disc is worse than none.
        free = all(np.hypot(u.x - goal.x, u.y - goal.y) > inner + max(u.radius, self._smallest) for u in units)
        if len(goal.owners) == 1 and free:
            self._write(str(goal.owners[0]), goal, inner, colors[0], order)

    def _draw_unit(self, unit: Thing, order: float) -> None:
        """An agent's disc with its index, or an opponent's diamond, its health as a rim; a cross if it is dead."""
        color, radius = _color(unit), max(unit.radius, self._smallest)
        look: dict[str, Any]
        if not unit.alive:
            look = {"color": paler(color, 0.7), "markersize": 1.1 * radius * self._points, "markeredgewidth": 1.8}
            self._ax.add_line(Line2D([unit.x], [unit.y], marker="x", zorder=1.5, **look))
            return
        if unit.health is not None:
            rim, end = 0.32 * radius, 90 + 360 * unit.health
            self._draw_ring(unit, radius + rim, rim, "#EDEDED", order, 0.0, 360.0)
            self._draw_ring(unit, radius + rim, rim, color if unit.owners else GREY, order, 90.0, end)
        look = {"fc": color, "ec": "white", "linewidth": 0.6, "zorder": order}
        if unit.kind == "opponent":
            self._ax.add_artist(RegularPolygon((unit.x, unit.y), 4, radius=radius, **look))
        elif unit.box is None:
            self._ax.add_artist(Circle((unit.x, unit.y), radius, **look))
        name = str(unit.owners[0]) if unit.owners else unit.label if len(unit.label) < 4 else ""
        self._write(name, unit, radius, text_color(color), order)

    def _draw_ring(
        self, thing: Thing, radius: float, width: float, color: str, order: float, start: float, end: float
    ) -> None:
        ring = Wedge((thing.x, thing.y), radius, start, end, width=width, fc=color, ec="none", zorder=order)
        self._ax.add_artist(ring)

    def _write(self, text: str, thing: Thing, radius: float, color: str, order: float) -> None:
        """A short text inside a disc."""
        size = min(max(radius * self._points * (1.25 if len(text) < 2 else 1.0), 4.5), 13)
        look: dict[str, Any] = {"ha": "center", "va": "center_baseline", "weight": "bold", "clip_on": True}
        self._ax.text(thing.x, thing.y, text, fontsize=size, color=color, zorder=order + 1e-3, **look)


def _square_around(scenes: Sequence[Scene]) -> tuple[float, float, float, float]:
    """Middle (x, y) and half the side of the square that the scenes need, and the radius of the smallest disc in it.

    A smaller disc could not be seen or would not hold a number.
    """
    corners = [corner for scene in scenes for corner in (scene.low, scene.high) if corner is not None]
    for thing in (thing for scene in scenes for thing in scene.things):
        reach = float(np.hypot(*thing.box)) / 2 if thing.box else thing.radius
        corners += [(thing.x - reach, thing.y - reach), (thing.x + reach, thing.y + reach)]
    points = np.array(corners or [(0.0, 0.0), (1.0, 1.0)])
    x, y = (points.max(axis=0) + points.min(axis=0)) / 2
    side = max(np.ptp(points, axis=0).max(), 1e-6)
    n_units = len(scenes[0].of_kind("agent", "opponent"))
    smallest = side * (0.030 if n_units <= 8 else 0.024 if n_units <= 20 else 0.019)
    return x, y, side / 2 + MARGIN * smallest, smallest


def _color(thing: Thing) -> str:
    return agent_color(thing.owners[0]) if thing.owners else _FILL.get(thing.kind, GREY)


def _edge(thing: Thing) -> str:
    return DARK if thing.kind == "object" else "none"


def _add_legend(scene: Scene, ax: Axes) -> None:
    """Under the scene: what else there is besides agents."""
    entries = [
        (look, OWNED if any(thing.owners for thing in things) else kind)
        for kind, look in _LEGEND.items()
        if (things := scene.of_kind(kind))
    ]
    if any(thing.health is not None for thing in scene.things):
        entries.append((_LEGEND["goal"], "rim: health"))
    if entries:
        handles = [Line2D([], [], linestyle="none", markersize=6, label=text, **look) for look, text in entries]
        look = {"fontsize": 8, "handletextpad": 0.2, "columnspacing": 1.2, "borderaxespad": 0.3, "ncols": len(handles)}
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.01, 0.0), **look)
