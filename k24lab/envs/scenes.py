"""Scenes of worlds that come from other packages: what their objects say, in the words of `k24lab.envs.scene`."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from k24lab.envs.scene import Kind, Scene, Thing

# Of the actions that move: mpe2's five; VMAS's nine, pairs (x, y) of {0, -, +} with y the faster; SMAX's four and stop.
MPE_MOVES = ("idle", *"←→↓↑")
VMAS_MOVES = ("idle", *"↓↑←↙↖→↘↗")
SMAX_MOVES = ("↑", "→", "↓", "←", "stop")


def mpe_scene(world: Any, agents: Sequence[str]) -> Scene:
    """A world of mpe2 (or of PettingZoo's former MPE) in which the team is `agents`, by name."""
    index = {name: i for i, name in enumerate(agents)}
    owners = _mpe_owners(world, index)
    things = [
        _mpe_thing(mark, _mpe_kind(mark, id(mark) in owners), owners.get(id(mark), ()), _role(mark.name))
        for mark in world.landmarks
        if getattr(mark, "alive", True)  # collect_treasure puts a treasure that is taken far away
    ]
    roles = _roles(agents)
    for agent in world.agents:
        if agent.name in index:
            i = index[agent.name]
            things.append(_mpe_thing(agent, "agent", (i,), roles[i]))
        else:
            things.append(_mpe_thing(agent, "opponent"))
    return Scene(tuple(things), low=(-1.0, -1.0), high=(1.0, 1.0))


def _mpe_kind(mark: Any, owned: bool) -> Kind:
    return "goal" if owned else "obstacle" if mark.collide else "landmark"


def _mpe_thing(entity: Any, kind: Kind, owners: tuple[int, ...] = (), label: str = "") -> Thing:
    x, y = entity.state.p_pos.tolist()
    return Thing(kind, x, y, radius=float(entity.size), owners=owners, label=label)


def _mpe_owners(world: Any, index: dict[str, int]) -> dict[int, tuple[int, ...]]:
    """Whose goal a landmark is: an agent may know (`goal_a`, `goal_b`) that another one must reach a landmark."""
    owners: dict[int, tuple[int, ...]] = {}
    for agent in world.agents:
        who, where = index.get(_name(getattr(agent, "_goal_a", None))), getattr(agent, "_goal_b", None)
        if who is not None and where is not None:
            owners[id(where)] = (*owners.get(id(where), ()), who)
    return owners


def _name(entity: Any) -> str:
    return getattr(entity, "name", "")


def mpe_action(agent: Any, action: int) -> str:
    """The move and the word that an action number of mpe2 stands for."""
    words = [MPE_MOVES[action % len(MPE_MOVES)]] if agent.movable else []
    if not agent.silent:
        words.append(f"says {action // len(MPE_MOVES) if agent.movable else action}")
    return " ".join(words) or str(action)


def vmas_scene(world: Any, agents: Sequence[Any], e: int) -> Scene:
    """Environment e of a VMAS world whose scripted agents are those that are not in `agents`."""
    index = {id(agent): i for i, agent in enumerate(agents)}
    owners: dict[int, tuple[int, ...]] = {}
    for i, agent in enumerate(agents):
        if (goal := getattr(agent, "goal", None)) is not None:
            owners[id(goal)] = (*owners.get(id(goal), ()), i)
    things = [
        _vmas_thing(mark, e, _vmas_kind(mark, id(mark) in owners), owners.get(id(mark), ()), _role(mark.name))
        for mark in world.landmarks
        if mark.is_rendering[e]  # food that is eaten, walls that are open
    ]
    roles = _roles([agent.name for agent in agents])
    for agent in world.agents:
        if id(agent) in index:
            i = index[id(agent)]
            things.append(_vmas_thing(agent, e, "agent", (i,), roles[i]))
        else:
            ball = "ball" in agent.name.lower()  # football's is an agent that a script moves
            things.append(_vmas_thing(agent, e, "object" if ball else "opponent", label="ball" if ball else ""))
    x, y = world.x_semidim, world.y_semidim
    if x is None or y is None:
        return Scene(tuple(things))
    return Scene(tuple(things), low=(-float(x), -float(y)), high=(float(x), float(y)))


def _vmas_kind(mark: Any, owned: bool) -> Kind:
    if owned or re.fullmatch(r"(.*[ _])?goal[ _]*\d*", mark.name.lower()):
        return "goal"
    return "object" if mark.movable else "obstacle" if mark.collide else "landmark"


def _vmas_thing(entity: Any, e: int, kind: Kind, owners: tuple[int, ...] = (), label: str = "") -> Thing:
    x, y = entity.state.pos[e].tolist()
    angle, shape = float(entity.state.rot[e, 0]), entity.shape
    if hasattr(shape, "radius"):
        return Thing(kind, x, y, radius=float(shape.radius), angle=angle, owners=owners, label=label)
    width = 0.0 if type(shape).__name__ == "Line" else float(shape.width)  # a line's width is in pixels
    return Thing(kind, x, y, box=(float(shape.length), width), angle=angle, owners=owners, label=label)


def vmas_action(agent: Any, n_actions: int, action: int) -> str:
    """The direction that one of nine actions pushes to; of other dynamics the number."""
    moves = n_actions == len(VMAS_MOVES) and type(agent.dynamics).__name__ == "Holonomic"
    return VMAS_MOVES[action] if moves else str(action)


def smax_scene(world: Any, state: Any, e: int) -> Scene:
    """Battle e of a batch of SMAX's states."""
    units = state.state
    positions, alive, types, health = (
        np.asarray(array)[e] for array in (units.unit_positions, units.unit_alive, units.unit_types, units.unit_health)
    )
    radius, full = np.asarray(world.unit_type_radiuses), np.asarray(world.unit_type_health)
    things = []
    for i, kind in enumerate(types.tolist()):
        mine, (x, y) = i < world.num_allies, positions[i].tolist()
        things.append(
            Thing(
                "agent" if mine else "opponent",
                x,
                y,
                radius=float(radius[kind]),
                owners=(i,) if mine else (),
                label=world.unit_type_names[kind] if mine else f"e{i - world.num_allies}",
                alive=bool(alive[i]),
                health=float(np.clip(health[i] / full[kind], 0, 1)),
            )
        )
    return Scene(tuple(things))  # without the map's limits: units are small, and fight in a part of it


def smax_action(action: int) -> str:
    """A move, or the enemy that is attacked, by its label in the scene."""
    return SMAX_MOVES[action] if action < len(SMAX_MOVES) else f"attack e{action - len(SMAX_MOVES)}"


def _roles(names: Sequence[str]) -> list[str]:
    """Roles of a team by the agents' names; none where all have the same."""
    roles = [_role(name) for name in names]
    return roles if len(set(roles)) > 1 else [""] * len(roles)


def _role(name: str) -> str:
    """`listener` of `listener_0`; empty for what every entity is called anyway."""
    role = re.sub(r"[ _]*\d+$", "", name)
    return "" if role in ("agent", "landmark", "goal") else role
