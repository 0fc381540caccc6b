"""The world at one moment: agents in their colours, their ways, and whatever else there is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Wedge

from k24lab.analysis.style import GREY, OKABE_ITO
from k24lab.envs.scene import Kind, Scene, Thing

LONG_NAMES = 16  # letters; longer ones would not fit under the world
TRAIL = 12  # env steps that an agent's way is seen

# Colours that go on where Okabe and Ito's end, of Tol's muted scheme and darker ones; the index tells the rest.
_AGENT_COLORS = (
    *(OKABE_ITO[name] for name in ("blue", "orange", "green", "purple", "vermillion", "sky", "yellow")),
    *("#332288", "#882255", "#999933", "#44AA99", "#8C6D31", "#CC6677", "#5D3A9B", "#DDCC77", "#661100"),
)
_DARK, _LIGHT = "#404040", "#D0D0D0"
_FILL: dict[Kind, str] = {"opponent": _DARK, "obstacle": _LIGHT, "object": "#9A9A9A"}
_ORDER: dict[Kind, float] = {
    "obstacle": 1.0,
    "landmark": 2.0,
    "goal": 3.0,  # trails are at 4
    "object": 5.0,
    "opponent": 6.0,
    "agent": 7.0,
}
_LEGEND: dict[Kind, dict[str, object]] = {
    "goal": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": GREY, "markeredgewidth": 2},
    "landmark": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": GREY},
    "opponent": {"marker": "D", "markerfacecolor": _DARK, "markeredgecolor": _DARK},
    "obstacle": {"marker": "s", "markerfacecolor": _LIGHT, "markeredgecolor": _LIGHT},
    "object": {"marker": "s", "markerfacecolor": _FILL["object"], "markeredgecolor": _DARK},
}


@dataclass(frozen=True)
class View:
    """The square that a whole episode needs, the same in every picture of it, in the world's units."""

    x: float  # its middle
    y: float
    reach: float  # half of its side
    smallest: float  # radius of the smallest disc that can be seen and hold a number


def agent_color(i: int) -> str:
    """The colour of agent i, in every world; it comes again after sixteen."""
    return _AGENT_COLORS[i % len(_AGENT_COLORS)]


def view_of(scenes: Sequence[Scene]) -> View:
    """What must be seen to see all of these scenes."""
    corners = [corner for scene in scenes for corner in (scene.low, scene.high) if corner is not None]
    for thing in (thing for scene in scenes for thing in scene.things):
        reach = float(np.hypot(*thing.box)) / 2 if thing.box else thing.radius
        corners += [(thing.x - reach, thing.y - reach), (thing.x + reach, thing.y + reach)]
    points = np.array(corners or [(0.0, 0.0), (1.0, 1.0)], dtype=float)
    middle, reach = (points.max(axis=0) + points.min(axis=0)) / 2, max(float(np.ptp(points, axis=0).max()), 1e-6) / 2
    n_units = len(scenes[0].of_kind("agent")) + len(scenes[0].of_kind("opponent"))
    smallest = 2 * reach * (0.030 if n_units <= 8 else 0.024 if n_units <= 20 else 0.019)
    return View(float(middle[0]), float(middle[1]), reach + 1.6 * smallest, smallest)


def frame_world(scene: Scene, view: View, ax: Axes) -> Axes:
    """What does not change in an episode: the frame, and under it what there is besides agents."""
    ax.set(xlim=(view.x - view.reach, view.x + view.reach), ylim=(view.y - view.reach, view.y + view.reach))
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=_LIGHT)
    if scene.picture is not None:
        height, width = scene.picture.shape[:2]
        side = max(height, width) / 2
        ax.set(xlim=(width / 2 - side, width / 2 + side), ylim=(height / 2 + side, height / 2 - side))
    _draw_legend(scene, ax)
    return ax


def draw_world(recent: Sequence[Scene], view: View, ax: Axes) -> Axes:
    """The last of these scenes, with the ways that led there, in a frame."""
    scene = recent[-1]
    if scene.picture is not None:
        height, width = scene.picture.shape[:2]
        image = AxesImage(ax, extent=(0, width, height, 0), origin="upper")  # imshow would change the limits
        image.set_data(scene.picture)
        ax.add_image(image)
        return ax
    _draw_trails(recent, ax)
    per_inch = 2 * view.reach / (ax.get_window_extent().width / ax.figure.dpi)
    units = [*scene.of_kind("agent"), *scene.of_kind("opponent")]
    for k, thing in enumerate(scene.things):
        order = _ORDER[thing.kind] + k / (len(scene.things) + 1)  # a disc covers the number of one below, too
        if thing.box is not None:
            _draw_box(thing, order, ax)
        if thing.kind in ("agent", "opponent"):
            _draw_unit(thing, max(thing.radius, view.smallest), per_inch, order, ax)
        elif thing.kind == "goal" and thing.box is None:
            _draw_goal(thing, view.smallest, per_inch, units, ax)
        elif thing.box is None:
            _draw_disc(thing, max(thing.radius, view.smallest / 2), order, ax)
    return ax


def _draw_trails(recent: Sequence[Scene], ax: Axes) -> None:
    """The ways of agents and opponents, fading into the past; the dead leave none."""
    segments, colors = [], []
    moving = [[*scene.of_kind("agent"), *scene.of_kind("opponent")] for scene in recent]
    for k, (before, after) in enumerate(itertools.pairwise(moving), start=1):
        for a, b in zip(before, after, strict=True):
            if b.alive:
                segments.append([(a.x, a.y), (b.x, b.y)])
                colors.append(paler(_color(b), 0.7 * k / len(recent)))
    ax.add_collection(LineCollection(segments, colors=colors, linewidths=2.2, zorder=4), autolim=False)


def paler(color: str, share: float) -> tuple[float, float, float]:
    """The colour mixed with white: a share of 1 leaves it as it is."""
    red, green, blue = (1 - (1 - c) * share for c in to_rgb(color))
    return red, green, blue


def _color(thing: Thing) -> str:
    return agent_color(thing.owners[0]) if thing.owners else _FILL.get(thing.kind, GREY)


def _draw_disc(thing: Thing, radius: float, order: float, ax: Axes) -> None:
    """Something round that is no agent; landmarks are hollow."""
    face, edge = ("none", GREY) if thing.kind == "landmark" else (_color(thing), _edge(thing))
    ax.add_artist(Circle((thing.x, thing.y), radius, fc=face, ec=edge, zorder=order))


def _edge(thing: Thing) -> str:
    return _DARK if thing.kind == "object" else "none"


def _draw_box(thing: Thing, order: float, ax: Axes) -> None:
    """A box where it is turned to; a line if it has no width."""
    assert thing.box is not None
    turn = np.array([[np.cos(thing.angle), -np.sin(thing.angle)], [np.sin(thing.angle), np.cos(thing.angle)]])
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array(thing.box) / 2
    corners = half @ turn.T + (thing.x, thing.y)
    if thing.box[1] == 0:
        ax.add_line(Line2D(*corners[:2].T, color=_DARK, linewidth=2, zorder=order))
        return
    hollow = thing.kind in ("landmark", "goal")
    face = paler(_color(thing), 0.15) if hollow else _color(thing)
    ax.add_artist(Polygon(corners, fc=face, ec=_color(thing) if hollow else _edge(thing), zorder=order))


def _draw_goal(goal: Thing, smallest: float, per_inch: float, units: Sequence[Thing], ax: Axes) -> None:
    """A ring with a part in the colour of each agent that it belongs to, wide enough to be seen around one."""
    inner, rim = max(goal.radius, smallest), 0.45 * smallest
    colors = [agent_color(i) for i in goal.owners] or [GREY]
    for color, (start, end) in zip(colors, itertools.pairwise(np.linspace(90, 450, len(colors) + 1)), strict=True):
        ring = Wedge((goal.x, goal.y), inner + rim, start, end, width=rim, fc=color, ec="none", zorder=_ORDER["goal"])
        ax.add_artist(ring)
    # Half a number behind a disc is worse than none.
    free = all(np.hypot(u.x - goal.x, u.y - goal.y) > inner + max(u.radius, smallest) for u in units)
    if len(goal.owners) == 1 and free:
        _write(str(goal.owners[0]), goal, inner, per_inch, agent_color(goal.owners[0]), _ORDER["goal"], ax)


def _draw_unit(unit: Thing, radius: float, per_inch: float, order: float, ax: Axes) -> None:
    """An agent's disc with its index, or an opponent's diamond; the dead are crosses."""
    color, where = _color(unit), (unit.x, unit.y)
    if not unit.alive:
        size = radius / per_inch * 72  # points
        look = {"marker": "x", "color": paler(color, 0.7), "markersize": size * 1.1, "markeredgewidth": 1.8}
        ax.add_line(Line2D([unit.x], [unit.y], zorder=1.5, **look))  # type: ignore[arg-type]
        return
    if unit.health is not None:
        rim = 0.32 * radius
        ax.add_artist(Wedge(where, radius + rim, 0, 360, width=rim, fc="#EDEDED", ec="none", zorder=order))
        end = 90 + 360 * unit.health
        ax.add_artist(
            Wedge(where, radius + rim, 90, end, width=rim, fc=color if unit.owners else GREY, ec="none", zorder=order)
        )
    if unit.kind == "opponent":
        corners = np.array(where) + radius * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
        ax.add_artist(Polygon(corners, fc=color, ec="white", linewidth=0.6, zorder=order))
    elif unit.box is None:
        ax.add_artist(Circle(where, radius, fc=color, ec="white", linewidth=0.6, zorder=order))
    name = str(unit.owners[0]) if unit.owners else unit.label if len(unit.label) < 4 else ""
    _write(name, unit, radius, per_inch, ink(color), order, ax)


def _write(text: str, thing: Thing, radius: float, per_inch: float, color: str, order: float, ax: Axes) -> None:
    """A short text inside a disc."""
    size = min(max(radius / per_inch * 72 * (1.25 if len(text) < 2 else 1.0), 4.5), 13)
    style = {"ha": "center", "va": "center_baseline", "weight": "bold", "clip_on": True}
    ax.text(thing.x, thing.y, text, fontsize=size, color=color, zorder=order + 1e-3, **style)  # type: ignore[arg-type]


def ink(color: str) -> str:
    """Black on light colours, white on dark ones."""
    return "black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.55 else "white"


def _draw_legend(scene: Scene, ax: Axes) -> None:
    """Under the world: what else there is besides agents."""
    entries = [(look, _named(things, kind)) for kind, look in _LEGEND.items() if (things := scene.of_kind(kind))]
    if any(thing.health is not None for thing in scene.things):
        entries.append((_LEGEND["goal"], "rim: health"))
    if entries:
        handles = [Line2D([], [], linestyle="none", markersize=6, label=text, **look) for look, text in entries]  # type: ignore[arg-type]
        look = {"fontsize": 8, "handletextpad": 0.2, "columnspacing": 1.2, "borderaxespad": 0.3, "ncols": len(handles)}
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.01, 0.0), **look)


def _named(things: Sequence[Thing], kind: Kind) -> str:
    """The world's own names, where they are few and short; else what kind of things they are."""
    if any(thing.owners for thing in things):
        return "goal, in the colours of its agents"
    names = list(dict.fromkeys(thing.label for thing in things if thing.label and kind != "opponent"))
    own = ", ".join(names)
    return own if names and len(own) <= LONG_NAMES else kind
