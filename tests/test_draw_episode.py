"""Frames of an episode show the things of its scenes where they are, in their colours."""

import dataclasses

import numpy as np

from k24lab.envs.scene import Episode, Scene, Thing
from k24lab.rendering.draw_episode import HEIGHT, SCENE, EpisodeDrawing
from k24lab.rendering.draw_scene import agent_color


def scene_of(*things: Thing) -> Scene:
    return Scene(things, low=(-1.0, -1.0), high=(1.0, 1.0))


def pixel(frame: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """Of the scene's square of side 2 (and a margin), in a frame of 100 dpi."""
    reach = 1 + 1.6 * 2 * 0.030
    left, bottom, side, _ = SCENE
    column = (left + side * (x + reach) / (2 * reach)) * 100
    row = (HEIGHT - bottom - side * (y + reach) / (2 * reach)) * 100
    return tuple(frame[int(row), int(column)].tolist())


def test_frames_show_agents_where_they_are_in_their_colours_and_the_dead_as_crosses():
    alive = scene_of(Thing("agent", 0.5, 0.5, radius=0.2, owners=(0,)), Thing("agent", -0.5, -0.5, owners=(1,)))
    dead = scene_of(alive.things[0], dataclasses.replace(alive.things[1], alive=False))
    episode = Episode((alive, dead), (("→", "←"),), np.ones(1, np.float32), limit=3)
    drawing = EpisodeDrawing(episode, "title", "", dpi=100)
    first, last = drawing.frame(0), drawing.frame(1)
    color = tuple(int(agent_color(0)[k : k + 2], 16) for k in (1, 3, 5))
    assert pixel(first, 0.62, 0.62) == pixel(last, 0.62, 0.62) == color
    assert pixel(first, -0.54, -0.5) != (255, 255, 255) and pixel(last, -0.55, -0.5) == (255, 255, 255)
    assert np.array_equal(drawing.frame(0), first)  # nothing of a later moment stays


def test_obstacles_objects_lines_goals_and_health_have_their_colours():
    scene = scene_of(
        Thing("obstacle", -0.5, 0.5, radius=0.2),
        Thing("object", 0.5, 0.5, box=(0.6, 0.1), angle=np.pi / 2),
        Thing("object", 0.0, 0.0, box=(1.0, 0.0), angle=np.pi / 4),
        Thing("landmark", 0.0, -0.7, radius=0.2),
        Thing("goal", -0.5, -0.5, radius=0.1, owners=(0, 1)),
        Thing("agent", 0.5, -0.5, radius=0.2, owners=(2,), label="medic", health=0.5),
    )
    names = ("idle",) * 3
    frame = EpisodeDrawing(Episode((scene, scene), (names,), np.ones(1, np.float32), 1), "", "", dpi=100).frame(0)
    assert pixel(frame, -0.5, 0.5) == (208, 208, 208)
    assert pixel(frame, 0.5, 0.75) == (154, 154, 154) and pixel(frame, 0.75, 0.5) == (
        255,
        255,
        255,
    )  # it stands upright
    assert pixel(frame, 0.3, 0.3) == (64, 64, 64) and pixel(frame, 0.0, -0.7) == (255, 255, 255)
    colors = [tuple(int(agent_color(i)[k : k + 2], 16) for k in (1, 3, 5)) for i in range(3)]
    rim = 0.1 + 0.03 * 0.45
    assert pixel(frame, -0.5 - rim, -0.5) == colors[0] and pixel(frame, -0.5 + rim, -0.5) == colors[1]
    assert pixel(frame, 0.5 - 0.23, -0.5) == colors[2] and pixel(frame, 0.5 + 0.23, -0.5) == (237, 237, 237)
