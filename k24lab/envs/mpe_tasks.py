"""The tasks of `mpe`: simple_spread and simple_tag."""

import inspect

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from k24lab.envs.base import TaskBuilder
from k24lab.envs.mpe import Body, MpeEnv
from k24lab.envs.mpe2 import EDGE, LOOK_AHEAD, MOVES
from k24lab.errors import ConfigError, unknown

PREY = ("flee", "random")
CAPTURE_RADIUS = 0.1  # in simple_spread: an agent that is nearer covers a landmark


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
        if not 0 <= local_ratio <= 1:
            raise ConfigError(f"mpe/simple_spread: local_ratio = {local_ratio} must be in 0 … 1")
        self._local_ratio, self._free = local_ratio, curriculum
        self._n_near = _n_nearest("simple_spread", "num_agent_neighbors", num_agent_neighbors)
        self._n_near_marks = _n_nearest("simple_spread", "num_landmark_neighbors", num_landmark_neighbors)
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


class SimpleTag(MpeEnv):
    """A team of `num_adversaries` hunts prey that is faster, between obstacles that nobody can pass.

    The prey flees (`prey=flee`, the rule of `k24lab.envs.mpe2.flee`) or takes random actions (`prey=random`). A
    predator observes its velocity and position, then relative positions of obstacles and of all other agents, then
    velocities of the prey. With `num_landmark_neighbors` or `num_agent_neighbors` it sees so many of the nearest,
    nearest first, and zeros where there are fewer and for velocities of predators.

    Reward of a predator: 10 for each pair of a prey and a predator that overlap. With `curriculum` (mpe2's first stage)
    the prey is half as fast. With `terminate_on_success` an episode ends when every prey is caught at once.
    """

    def __init__(
        self,
        n_envs: int,
        num_good: int = 1,
        num_adversaries: int = 3,
        num_obstacles: int = 2,
        max_cycles: int = 25,
        curriculum: bool = False,
        terminate_on_success: bool = False,
        num_agent_neighbors: object = None,  # or a whole number
        num_landmark_neighbors: object = None,
        prey: str = "flee",
        device: str = "cpu",
    ):
        check_prey("simple_tag", prey, num_good)
        check_numbers("simple_tag", num_adversaries=num_adversaries, num_obstacles=num_obstacles)
        self._prey = prey
        self._n_near = _n_nearest("simple_tag", "num_agent_neighbors", num_agent_neighbors)
        self._n_near_marks = _n_nearest("simple_tag", "num_landmark_neighbors", num_landmark_neighbors)
        n, n_agents, pace = num_adversaries, num_adversaries + num_good, 0.5 if curriculum else 1.0
        n_others = n_agents - 1 if self._n_near is None else self._n_near
        n_velocities = num_good if self._n_near is None else self._n_near
        n_landmarks = num_obstacles if self._n_near_marks is None else self._n_near_marks
        hunters = [Body(f"adversary_{i}", size=0.075, accel=3.0, max_speed=1.0) for i in range(n)]
        super().__init__(
            hunters + [Body(f"agent_{i}", accel=4.0 * pace, max_speed=1.3 * pace) for i in range(num_good)],
            [Body(f"landmark {i}", size=0.2, movable=False) for i in range(num_obstacles)],
            [4 + 2 * (n_landmarks + n_others + n_velocities)] * n,
            n_envs,
            max_cycles,
            device,
            ends_early=terminate_on_success,
        )

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        n_agents, n_envs, n_prey = len(self._agents), self.spec.n_envs, len(self._agents) - self.spec.n_agents
        agents = self._uniform(generator, n_agents, 1.0)
        obstacles = self._uniform(generator, len(self._landmarks), 0.9)
        if self._prey == "random":
            moves = torch.randint(len(MOVES), (self.spec.episode_limit, n_envs, n_prey), generator=generator)
            self._prey_moves = moves.to(self._device)
        return torch.cat([agents, obstacles], dim=1)

    def _script(self) -> Int[Tensor, "E P"]:
        if self._prey == "random":
            return self._prey_moves[self._t]
        n = self.spec.n_agents
        return flee(self._position[:, n:], self._velocity[:, n:], self._position[:, :n], self._moves)

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        n = self.spec.n_agents
        landmarks = self._seen(self._relative, self._to_marks, self._n_near_marks)
        others = self._seen(self._relative, self._others, self._n_near)
        if self._n_near is None:
            prey = self._velocity[:, n:].flatten(1).unsqueeze(1).expand(-1, n, -1)
        else:
            speeds = pad(self._velocity[:, n:], (0, 0, n, len(self._landmarks)))  # of all bodies; none of predators
            prey = self._seen(speeds.unsqueeze(1).expand_as(self._relative), self._others, self._n_near)
        return [torch.cat([self._velocity[:, :n], self._position[:, :n], landmarks, others, prey], dim=2)]

    def _reward(self) -> Float[Tensor, " E"]:
        return 10.0 * self.spec.n_agents * self._caught().sum(dim=(1, 2))

    def _success(self) -> Bool[Tensor, " E"]:
        return self._caught().any(dim=1).all(dim=1)

    def _caught(self) -> Bool[Tensor, "E N P"]:
        """Which predator overlaps which prey."""
        n, n_agents = self.spec.n_agents, len(self._agents)
        return self._distance[:, :n, n:n_agents] < self._reach[:n, n:n_agents]


def flee(
    prey: Float[Tensor, "E P 2"],
    velocity: Float[Tensor, "E P 2"],
    predators: Float[Tensor, "E N 2"],
    moves: Float[Tensor, "A 2"],
) -> Int[Tensor, "E P"]:
    """Actions of prey that flees: the rule of `k24lab.envs.mpe2.flee`, where its equation is, for E environments."""
    position = prey + LOOK_AHEAD * velocity
    away = position[:, :, None] - predators[:, None]
    distance = torch.linalg.vector_norm(away, dim=-1, keepdim=True) + 1e-6  # on top of a predator: no division by 0
    walls = 2 * position.sign() * torch.exp(8 * (position.abs() - EDGE))
    return (((away / distance**3).sum(dim=2) - walls) @ moves.T).argmax(dim=-1)


def check_prey(task: str, prey: str, n_prey: int) -> None:
    """Raises ConfigError for a rule that does not exist, and where there is nothing to hunt."""
    if prey not in PREY:
        raise ConfigError(unknown("prey", prey, PREY))
    if n_prey < 1:
        raise ConfigError(f"mpe/{task}: there is no good agent that the team could hunt")


def check_numbers(task: str, **numbers: int) -> None:
    """Raises ConfigError for numbers of things that are negative."""
    for option, number in numbers.items():
        if number < 0:
            raise ConfigError(f"mpe/{task}: {option} = {number} must be at least 0")


def _n_nearest(task: str, option: str, n: object) -> int | None:
    """How many of the nearest an agent sees; None: all."""
    if n is None or (isinstance(n, int) and n > 0):
        return n
    raise ConfigError(f"mpe/{task}: {option} = {n!r} must be a whole number, at least 1, or None")


MPE_TASKS: dict[str, type[MpeEnv]] = {"simple_spread": SimpleSpread, "simple_tag": SimpleTag}


def mpe_builder(name: str) -> TaskBuilder:
    """The builder of one of MPE_TASKS, with its options."""
    return TaskBuilder(MPE_TASKS[name], inspect.signature(MPE_TASKS[name]).parameters)
