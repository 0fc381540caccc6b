"""Tasks of `mpe` in which a team must be at certain places: simple_spread, simple_formation, simple_line."""

from abc import abstractmethod
from functools import cache
from itertools import permutations
from math import pi, radians
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.mpe import EXACT, Body, MpeEnv, check_share, n_nearest

CAPTURE_RADIUS = 0.1  # in simple_spread: an agent that is nearer covers a landmark
RING_RADIUS = 0.5  # in simple_formation
LINE_LENGTH = 1.25  # in simple_line
ON_PLACE = 0.05  # in both: an agent that is nearer is at its place
TURN = radians(5)  # simple_line's second landmark goes around the first in such steps, until it is in the square
MOST_PERMUTATIONS = 5  # agents: for more, scipy finds the best assignment of one environment after the other


class SimpleSpread(MpeEnv):
    """N agents must cover N landmarks and not collide.

    An agent observes its velocity and position, then relative positions of landmarks and of other agents, then two
    zeros for each other agent, where mpe2 has words that nobody says. With `num_landmark_neighbors` or
    `num_agent_neighbors` it sees so many of the nearest, nearest first, and zeros where there are fewer.

    Reward of an agent: `local_ratio` times minus the number of agents that it overlaps, plus `1 - local_ratio` times
    minus the sum over landmarks of the distance to the nearest agent. With `curriculum` (mpe2's first stage) overlaps
    are free. With `terminate_on_success` an episode ends when every landmark is covered.
    """

    def __init__(
        self,
        n_envs: int,
        N: int = 3,
        local_ratio: float = 0.5,
        max_cycles: int = 25,
        curriculum: bool = False,
        terminate_on_success: bool = False,
        num_agent_neighbors: object = None,  # or a whole number
        num_landmark_neighbors: object = None,
        device: str = "cpu",
    ):
        check_share("simple_spread", local_ratio=local_ratio)
        self._local_ratio, self._free = local_ratio, curriculum
        self._n_near = n_nearest("simple_spread", "num_agent_neighbors", num_agent_neighbors)
        self._n_near_marks = n_nearest("simple_spread", "num_landmark_neighbors", num_landmark_neighbors)
        n_others = N - 1 if self._n_near is None else self._n_near
        n_landmarks = N if self._n_near_marks is None else self._n_near_marks
        super().__init__(
            [Body(f"agent_{i}", size=0.15) for i in range(N)],
            [Body(f"landmark {i}", collides=False, movable=False) for i in range(N)],
            [4 + 2 * n_landmarks + 4 * n_others] * N,
            n_envs,
            max_cycles,
            device,
            ends_early=terminate_on_success,
        )
        self._no_words = self._zeros(N, 2 * n_others)

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        return self._uniform(generator, 2 * self.spec.n_agents, 1.0)

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        landmarks = self._seen(self._relative, self._to_marks, self._n_near_marks)
        others = self._seen(self._relative, self._others, self._n_near)
        return [torch.cat([self._velocity, self._position, landmarks, others, self._no_words], dim=2)]

    def _reward(self) -> Float[Tensor, " E"]:
        n = self.spec.n_agents
        reward = (self._local_ratio - 1) * n * self._to_landmarks().sum(dim=1)
        if self._free:
            return reward
        return reward - self._local_ratio * (self._distance < self._touch).sum(dim=(1, 2))

    def _success(self) -> Bool[Tensor, " E"]:
        return (self._to_landmarks() < CAPTURE_RADIUS).all(dim=1)

    def _to_landmarks(self) -> Float[Tensor, "E L"]:
        """The distance of each landmark to the nearest agent."""
        return self._distance[:, :, self.spec.n_agents :].amin(dim=1)


class Places(MpeEnv):
    """N agents must be at N places, which landmarks define, each agent at another one.

    Of all assignments of agents to places the one with the smallest sum of distances counts. Reward of an agent: minus
    the mean of these distances, of which each counts at most 2. An agent observes its velocity and position, then the
    relative positions of landmarks. With `terminate_on_success` an episode ends when all are at their places.
    """

    n_landmarks: ClassVar[int]
    agent_size: ClassVar[float]
    landmark_size: ClassVar[float]

    def __init__(
        self,
        n_envs: int,
        N: int = 4,
        max_cycles: int = 25,
        terminate_on_success: bool = False,
        device: str = "cpu",
    ):
        names = [f"landmark_{i}" for i in range(self.n_landmarks)]
        super().__init__(
            [Body(f"agent_{i}", size=self.agent_size) for i in range(N)],
            [Body(name, size=self.landmark_size, collides=False, movable=False) for name in names],
            [4 + 2 * self.n_landmarks] * N,
            n_envs,
            max_cycles,
            device,
            ends_early=terminate_on_success,
        )
        self._index = torch.arange(N, dtype=EXACT, device=device)

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        return [torch.cat([self._velocity, self._position, self._seen(self._relative, self._to_marks)], dim=2)]

    def _reward(self) -> Float[Tensor, " E"]:
        to_places = torch.linalg.vector_norm(self._position[:, :, None] - self._places()[:, None], dim=3)
        self._missing = assigned(to_places)
        return -self.spec.n_agents * self._missing.clamp(max=2).mean(dim=1)

    def _success(self) -> Bool[Tensor, " E"]:
        return (self._missing < ON_PLACE).all(dim=1)

    @abstractmethod
    def _places(self) -> Float[Tensor, "E N 2"]:
        """Where agents must be."""


class SimpleFormation(Places):
    """N agents must form a ring around a landmark: a regular polygon, turned to the agent with the smallest angle."""

    n_landmarks, agent_size, landmark_size = 1, 0.05, 0.03

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        n = self.spec.n_agents
        return torch.cat([self._uniform(generator, n, 1.0), self._uniform(generator, 1, 0.5)], dim=1)

    def _places(self) -> Float[Tensor, "E N 2"]:
        x, y = (self._position - self._marks).unbind(dim=2)
        angle = torch.atan2(y, x)
        first = torch.where(angle < 0, angle + 2 * pi, angle).amin(dim=1, keepdim=True)
        angles = first + self._index * (2 * pi / self.spec.n_agents)
        return self._marks + RING_RADIUS * torch.stack([angles.cos(), angles.sin()], dim=2)


class SimpleLine(Places):
    """N agents must spread evenly over the line between two landmarks."""

    n_landmarks, agent_size, landmark_size = 2, 0.03, 0.02

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        agents, start = self._uniform(generator, self.spec.n_agents, 1.0), self._uniform(generator, 1, 0.25)
        angle = 2 * pi * torch.rand(self.spec.n_envs, 1, dtype=EXACT, generator=generator)
        while True:
            end = start + LINE_LENGTH * torch.stack([angle.cos(), angle.sin()], dim=2)
            outside = end.abs().amax(dim=2) >= 1
            if not outside.any():
                return torch.cat([agents, start, end], dim=1)
            angle = angle + TURN * outside

    def _places(self) -> Float[Tensor, "E N 2"]:
        start, end = self._marks[:, :1], self._marks[:, 1:]
        return start + self._index[:, None] / max(self.spec.n_agents - 1, 1) * (end - start)


def assigned(distance: Float[Tensor, "E N N"]) -> Float[Tensor, "E N"]:
    """Distances of agents to their places, in the assignment with the smallest sum."""
    n, device = distance.shape[1], distance.device
    if n > MOST_PERMUTATIONS:
        from scipy.optimize import linear_sum_assignment

        places = [linear_sum_assignment(costs)[1].tolist() for costs in distance.cpu().numpy()]
        return distance.gather(2, torch.tensor(places, device=device)[..., None])[..., 0]
    flat = distance.flatten(1)[:, _orders(n, device)]  # [E, n!, N]
    best = flat.sum(dim=2).argmin(dim=1)
    return flat.gather(1, best[:, None, None].expand(-1, 1, n))[:, 0]


@cache
def _orders(n: int, device: torch.device) -> Int[Tensor, "F N"]:
    """Where the distances of each assignment are among all n * n."""
    places = torch.tensor(list(permutations(range(n))), device=device)
    return places + n * torch.arange(n, device=device)
