"""What an environment looks like at one moment: the data that animations are drawn from.

RoleNav makes its scenes itself; those of MPE, VMAS and SMAX are read here from the objects of these packages.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

Kind = Literal["agent", "opponent", "goal", "landmark", "obstacle", "object"]  # object: what can be moved

# Names of the actions that move. mpe2 has five actions, VMAS nine: pairs (x, y) of {0, -, +}, y the faster.
MPE_MOVES = ("idle", *"←→↓↑")
VMAS_MOVES = ("idle", *"↓↑←↙↖→↘↗")
SMAX_MOVES = ("↑", "→", "↓", "←", "stop")


@dataclass(frozen=True)
class Thing:
    """One thing in the plane. Lengths are in the environment's own units."""

    kind: Kind
    x: float
    y: float
    radius: float = 0.0  # of a disc; 0: a point
    box: tuple[float, float] | None = None  # length and width in place of a radius; a line's width is 0
    angle: float = 0.0  # radians, anticlockwise, of a box
    owners: tuple[int, ...] = ()  # agents that it belongs to; an agent's own index
    label: str = ""  # an agent's type or role; of others a short name
    alive: bool = True
    health: float | None = None  # share of the full health; None: things have no health here


@dataclass(frozen=True)
class Scene:
    """One moment of one episode; agents and opponents come in the same order at every moment."""

    things: tuple[Thing, ...]
    low: tuple[float, float] | None = None  # lower left corner of what must be seen; None: where the things are
    high: tuple[float, float] | None = None
    picture: UInt8[np.ndarray, "H W 3"] | None = None  # drawn by the environment itself, in place of things

    def of_kind(self, *kinds: Kind) -> list[Thing]:
        """All things of these kinds."""
        return [thing for thing in self.things if thing.kind in kinds]


@dataclass(frozen=True)
class Episode:
    """T + 1 scenes, and what the N agents did in each of them but the last."""

    scenes: tuple[Scene, ...]
    actions: tuple[tuple[str, ...], ...]  # [T][N], by name
    rewards: Float[np.ndarray, " T"]  # of the team
    limit: int  # env steps that it could have had
    won: bool | None = None  # None: the environment knows no winner

    @property
    def n_steps(self) -> int:
        """T, env steps."""
        return len(self.rewards)


def mpe_scene(world: Any, agents: Sequence[str]) -> Scene:
    """The scene of an mpe2 world (or of PettingZoo's former MPE) in which the team is `agents`, by name."""

    def thing(entity: Any, kind: Kind, owners: tuple[int, ...] = (), label: str = "") -> Thing:
        x, y = entity.state.p_pos.tolist()
        return Thing(kind, x, y, radius=float(entity.size), owners=owners, label=label)

    # An agent may know (`goal_a`, `goal_b`) that another one must reach a landmark.
    goals = [(getattr(getattr(agent, "_goal_a", None), "name", ""), agent) for agent in world.agents]
    owners = _owners((agents.index(name), getattr(agent, "_goal_b", None)) for name, agent in goals if name in agents)
    things = []
    for mark in world.landmarks:
        if getattr(mark, "alive", True):  # collect_treasure puts a treasure that is taken far away
            kind: Kind = "goal" if id(mark) in owners else "obstacle" if mark.collide else "landmark"
            things.append(thing(mark, kind, owners.get(id(mark), ()), _role(mark.name)))
    roles = dict(zip(agents, _roles(agents), strict=True))
    for agent in world.agents:
        if agent.name in roles:
            things.append(thing(agent, "agent", (agents.index(agent.name),), roles[agent.name]))
        else:
            things.append(thing(agent, "opponent"))
    return Scene(tuple(things), low=(-1.0, -1.0), high=(1.0, 1.0))


def mpe_action(agent: Any, action: int) -> str:
    """The move and the word that an action number of mpe2 stands for."""
    words = [MPE_MOVES[action % len(MPE_MOVES)]] if agent.movable else []
    if not agent.silent:
        words.append(f"says {action // len(MPE_MOVES) if agent.movable else action}")
    return " ".join(words) or str(action)


def vmas_scene(world: Any, agents: Sequence[Any], e: int) -> Scene:
    """The scene of environment e of a VMAS world whose scripted agents are those that are not in `agents`."""
    index = {id(agent): i for i, agent in enumerate(agents)}
    owners = _owners((i, getattr(agent, "goal", None)) for i, agent in enumerate(agents))
    things = []
    for mark in world.landmarks:
        if mark.is_rendering[e]:  # food that is eaten and walls that are open are not
            kind = "goal" if id(mark) in owners else _vmas_kind(mark)
            things.append(_vmas_thing(mark, e, kind, owners.get(id(mark), ()), _role(mark.name)))
    roles = _roles([agent.name for agent in agents])
    for agent in world.agents:
        if (i := index.get(id(agent))) is not None:
            things.append(_vmas_thing(agent, e, "agent", (i,), roles[i]))
        elif "ball" in agent.name.lower():  # football's is an agent that a script moves
            things.append(_vmas_thing(agent, e, "object", label="ball"))
        else:
            things.append(_vmas_thing(agent, e, "opponent"))
    x, y = world.x_semidim, world.y_semidim
    if x is None or y is None:
        return Scene(tuple(things))
    return Scene(tuple(things), low=(-float(x), -float(y)), high=(float(x), float(y)))


def _vmas_kind(mark: Any) -> Kind:
    if re.fullmatch(r"(.*[ _])?goal[ _]*\d*", mark.name.lower()):
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


def smax_scene(env: Any, state: Any, e: int) -> Scene:
    """The scene of battle e in a batch of states of JaxMARL's SMAX."""
    units = state.state
    positions, alive, types, health = (
        np.asarray(array)[e] for array in (units.unit_positions, units.unit_alive, units.unit_types, units.unit_health)
    )
    radius, full_health = np.asarray(env.unit_type_radiuses), np.asarray(env.unit_type_health)
    things = []
    for i, unit_type in enumerate(types.tolist()):
        mine, (x, y) = i < env.num_allies, positions[i].tolist()
        things.append(
            Thing(
                "agent" if mine else "opponent",
                x,
                y,
                radius=float(radius[unit_type]),
                owners=(i,) if mine else (),
                label=env.unit_type_names[unit_type] if mine else f"e{i - env.num_allies}",
                alive=bool(alive[i]),
                health=float(np.clip(health[i] / full_health[unit_type], 0, 1)),
            )
        )
    return Scene(tuple(things))  # without the map's limits: units are small, and fight in a part of it


def smax_action(action: int) -> str:
    """A move, or the enemy that is attacked, by its label in the scene."""
    return SMAX_MOVES[action] if action < len(SMAX_MOVES) else f"attack e{action - len(SMAX_MOVES)}"


def _owners(goals: Iterable[tuple[int, Any]]) -> dict[int, tuple[int, ...]]:
    """Agents by the id of their goal, from pairs of an agent's index and its goal (None: it has none)."""
    owners: dict[int, tuple[int, ...]] = {}
    for i, goal in goals:
        if goal is not None:
            owners[id(goal)] = (*owners.get(id(goal), ()), i)
    return owners


def _roles(names: Sequence[str]) -> list[str]:
    """Roles of a team by the agents' names; none where all have the same."""
    roles = [_role(name) for name in names]
    return roles if len(set(roles)) > 1 else [""] * len(roles)


def _role(name: str) -> str:
    """`listener` of `listener_0`; empty for what every entity is called anyway."""
    role = re.sub(r"[ _]*\d+$", "", name)
    return "" if role in ("agent", "landmark", "goal") else role
