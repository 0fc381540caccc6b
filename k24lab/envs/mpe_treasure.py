"""A task of `mpe` in which collectors bring treasures to deposits of their kind: collect_treasure."""

from math import inf
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from k24lab.envs.mpe import EXACT, Body, MpeEnv, check_least

BOUND = 0.95  # of the square in which treasures appear
PRIZE = 5.0  # for a treasure that is taken, and for one that is delivered
CLOSER = 0.1  # reward for each unit of distance
NOTHING = -1  # kind of the treasure of a collector without one


class CollectTreasure(MpeEnv):
    """Collectors take treasures by touching them, and bring each to the deposit of its kind, which moves as well.

    Bodies pass through each other. A collector carries one treasure; a treasure that is taken appears elsewhere in
    the next env step, and may be of another kind. There are as many kinds as deposits.

    An agent observes its position and velocity; a collector then what it carries (one-hot); then for each other
    agent, nearest first, relative position, velocity, its kind if it is a deposit and what it carries (both one-hot);
    then for each treasure, nearest first, relative position and kind, of which those just taken are zeros at the end.

    Everybody gets PRIZE for each treasure that anybody takes or delivers. A collector loses 5 for each other collector
    that it overlaps, and CLOSER times the distance to the nearest treasure, or to the deposit of what it carries. A
    deposit loses CLOSER times the distance to the nearest collector with its kind, or without one to the centre of
    all collectors.
    """

    def __init__(
        self,
        n_envs: int,
        num_collectors: int = 6,
        num_deposits: int = 2,
        num_treasures: int = 6,
        max_cycles: int = 25,
        device: str = "cpu",
    ):
        check_least(
            "collect_treasure",
            1,
            num_collectors=num_collectors,
            num_deposits=num_deposits,
            num_treasures=num_treasures,
        )
        self._n_collectors, self._n_kinds = num_collectors, num_deposits
        seen = (num_collectors + num_deposits - 1) * (4 + 2 * num_deposits) + num_treasures * (2 + num_deposits)
        self._deposits = torch.arange(num_deposits, device=device)
        self._deposit_codes = pad(
            torch.eye(num_deposits, dtype=torch.int64, device=device), (0, num_deposits, num_collectors, 0)
        )
        super().__init__(
            [Body(f"collector_{i}", size=0.05, collides=False, accel=1.5, max_speed=1.0) for i in range(num_collectors)]
            + [
                Body(f"deposit_{i}", size=0.075, collides=False, mass=2.25, accel=1.5, max_speed=1.0)
                for i in range(num_deposits)
            ],
            [Body(f"treasure_{i}", size=0.025, collides=False, movable=False) for i in range(num_treasures)],
            [4 + num_deposits + seen] * num_collectors + [4 + seen] * num_deposits,
            n_envs,
            max_cycles,
            device,
        )

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        n_envs, n_treasures = self.spec.n_envs, len(self._landmarks)
        agents = self._uniform(generator, len(self._agents), 1.0)
        size = (1 + self.spec.episode_limit, n_envs, n_treasures)  # one for the start, and one for each env step
        places = BOUND * (2 * torch.rand(*size, 2, dtype=EXACT, generator=generator) - 1)
        self._next_kinds = torch.randint(self._n_kinds, size, generator=generator).to(self._device)
        self._next_places = places.to(self._device)
        self._kind, self._there = self._next_kinds[0], torch.ones_like(self._next_kinds[0], dtype=torch.bool)
        self._carries = torch.full((n_envs, self._n_collectors), NOTHING, device=self._device)
        return torch.cat([agents, places[0]], dim=1)

    def _apply_rules(self) -> None:
        """Treasures are taken or appear again, then those of the right kind are delivered."""
        n, n_agents = self._n_collectors, len(self._agents)
        missing = ~self._there
        touched = self._distance[:, :n, n_agents:] < self._reach[:n, n_agents:]
        taken = self._take(touched & self._there[:, None])
        self._there = self._there & ~taken | missing
        self._kind = torch.where(missing, self._next_kinds[self._t], self._kind)
        self._marks = torch.where(missing[..., None], self._next_places[self._t], self._marks)
        self._measure()
        at_deposit = self._distance[:, :n, n:n_agents] < self._reach[:n, n:n_agents]
        delivered = (at_deposit & (self._carries[..., None] == self._deposits)).any(dim=2)
        self._carries = self._carries.masked_fill(delivered, NOTHING)
        self._n_prizes = taken.sum(dim=1) + delivered.sum(dim=1)

    def _take(self, touched: Bool[Tensor, "E C T"]) -> Bool[Tensor, "E T"]:
        """Which treasures are taken: each, in order, by the first collector that touches it and carries nothing."""
        taken = torch.zeros_like(self._there)
        if not touched.any():
            return taken
        for k in range(touched.shape[2]):
            able = touched[:, :, k] & (self._carries == NOTHING)
            first = able & (able.cumsum(dim=1) == 1)
            self._carries = torch.where(first, self._kind[:, k, None], self._carries)
            taken[:, k] = able.any(dim=1)
        return taken

    def _measure(self) -> None:
        super()._measure()
        self._distance[:, :, len(self._agents) :].masked_fill_(~self._there[:, None], inf)

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        n, n_agents, n_kinds = self._n_collectors, len(self._agents), self._n_kinds
        carried = one_hot(self._carries + 1, n_kinds + 1)[..., 1:]
        codes = pad(carried, (n_kinds, 0, 0, n_agents - n)) + self._deposit_codes
        agents = self._as_seen(pad(torch.cat([self._velocity, codes], dim=2), (0, 0, 0, len(self._landmarks))))
        treasures = self._as_seen(pad(one_hot(self._kind, n_kinds), (0, 0, n_agents, 0)))
        treasures = treasures * pad(self._there, (n_agents, 0))[:, None, :, None]
        seen = torch.cat(
            [
                self._seen(agents, self._others, n_agents - 1),
                self._seen(treasures, self._to_marks, self._kind.shape[1]),
            ],
            dim=2,
        )
        own = torch.cat([self._position, self._velocity], dim=2)
        return [torch.cat([own[:, :n], carried, seen[:, :n]], dim=2), torch.cat([own[:, n:], seen[:, n:]], dim=2)]

    def _as_seen(self, of_bodies: Float[Tensor, "E K F"] | Int[Tensor, "E K F"]) -> Float[Tensor, "E I K G"]:
        """Relative positions, and what is to be known of each body."""
        known = of_bodies.unsqueeze(1).expand(-1, len(self._agents), -1, -1)
        return torch.cat([self._relative, known], dim=3)

    def _reward(self) -> Float[Tensor, " E"]:
        n, n_agents = self._n_collectors, len(self._agents)
        apart = self._distance[:, :n, :n]
        reward = PRIZE * n_agents * self._n_prizes - 5.0 * (apart < self._reach[:n, :n]).sum(dim=(1, 2))
        to_treasure = self._distance[:, :n, n_agents:].amin(dim=2)
        to_treasure = torch.where(to_treasure < inf, to_treasure, 0)  # where all have just been taken
        to_deposit = self._distance[:, :n, n:n_agents].gather(2, self._carries.clamp(min=0)[..., None])[..., 0]
        ways = torch.where(self._carries == NOTHING, to_treasure, to_deposit).sum(dim=1)
        comes = self._carries[:, None] == self._deposits[:, None]  # [E, D, C]
        to_carrier = torch.where(comes, self._distance[:, n:n_agents, :n], inf).amin(dim=2)
        centre = self._position[:, :n].mean(dim=1, keepdim=True)
        to_centre = torch.linalg.vector_norm(centre - self._position[:, n:], dim=2)
        ways += torch.where(to_carrier < inf, to_carrier, to_centre).sum(dim=1)
        return reward - CLOSER * ways

    def _as_world(self, e: int) -> SimpleNamespace:
        world = super()._as_world(e)
        for treasure, there in zip(world.landmarks, self._there[e].tolist(), strict=True):
            treasure.alive = there
        return world
