"""What a world looks like while a team plays: worlds say it, drawings show it, and neither knows of the other."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

Kind = Literal["agent", "opponent", "goal", "landmark", "obstacle", "object"]  # object: what can be moved


@dataclass(frozen=True)
class Thing:
    """One thing in the plane. Lengths are in the world's own units."""

    kind: Kind
    x: float
    y: float
    radius: float = 0.0  # of a disc; 0: a point
    box: tuple[float, float] | None = None  # length and width in place of a radius; a line's width is 0
    angle: float = 0.0  # radians, anticlockwise, of a box
    owners: tuple[int, ...] = ()  # agents that it belongs to; an agent's own index
    label: str = ""  # an agent's type or role; of others a short name
    alive: bool = True
    health: float | None = None  # share of the full health; None: there is no such thing


@dataclass(frozen=True)
class Scene:
    """One moment of one episode; agents and opponents come in the same order at every moment."""

    things: tuple[Thing, ...]
    low: tuple[float, float] | None = None  # left lower corner of what must be seen; None: where the things are
    high: tuple[float, float] | None = None
    picture: UInt8[np.ndarray, "H W 3"] | None = None  # drawn by the world itself, in place of things

    def of_kind(self, kind: Kind) -> list[Thing]:
        """All things of one kind."""
        return [thing for thing in self.things if thing.kind == kind]


@dataclass(frozen=True)
class Episode:
    """What happened: T + 1 scenes, and what the N agents did in each but the last."""

    scenes: tuple[Scene, ...]
    actions: tuple[tuple[str, ...], ...]  # [T][N], by name
    rewards: Float[np.ndarray, " T"]  # of the team
    limit: int  # env steps that it could have had
    won: bool | None = None  # None: the world knows no winner

    @property
    def n_steps(self) -> int:
        """T, env steps."""
        return len(self.rewards)
