"""Tasks of `mpe` in which a team hunts prey that a script plays: simple_tag, simple_world_comm."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from k24lab.envs.mpe import Body, MpeEnv, check_least, n_nearest
from k24lab.envs.mpe2 import EDGE, LOOK_AHEAD, MOVES
from k24lab.errors import ConfigError, unknown

PREY = ("flee", "random")


class Hunt(MpeEnv):
    """A team hunts prey, which flees (the rule of `k24lab.envs.mpe2.flee`) or takes random actions."""

    def _set_prey(self, task: str, prey: str, n_prey: int) -> None:
        if prey not in PREY:
            raise ConfigError(unknown("prey", prey, PREY))
        if n_prey < 1:
            raise ConfigError(f"mpe/{task}: there is no good agent that the team could hunt")
        self._prey = prey

    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        n_agents, n_envs, n_prey = len(self._agents), self.spec.n_envs, len(self._agents) - self.spec.n_agents
        agents = self._uniform(generator, n_agents, 1.0)
        landmarks = self._uniform(generator, len(self._landmarks), 0.9)
        if self._prey == "random":
            moves = torch.randint(len(MOVES), (self.spec.episode_limit, n_envs, n_prey), generator=generator)
            self._prey_moves = moves.to(self._device)
        return torch.cat([agents, landmarks], dim=1)

    def _script(self) -> Int[Tensor, "E P"]:
        if self._prey == "random":
            return self._prey_moves[self._t]
        n = self.spec.n_agents
        return flee(self._position[:, n:], self._velocity[:, n:], self._position[:, :n], self._moves)

    def _caught(self) -> Bool[Tensor, "E N P"]:
        """Which predator overlaps which prey."""
        n, n_agents = self.spec.n_agents, len(self._agents)
        return self._distance[:, :n, n:n_agents] < self._reach[:n, n:n_agents]


class SimpleTag(Hunt):
    """A team of `num_adversaries` hunts prey that is faster, between obstacles that nobody can pass.

    A predator observes its velocity and position, then relative positions of obstacles and of all other agents, then
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
        self._set_prey("simple_tag", prey, num_good)
        check_least("simple_tag", 0, num_adversaries=num_adversaries, num_obstacles=num_obstacles)
        self._n_near = n_nearest("simple_tag", "num_agent_neighbors", num_agent_neighbors)
        self._n_near_marks = n_nearest("simple_tag", "num_landmark_neighbors", num_landmark_neighbors)
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


class SimpleWorldComm(Hunt):
    """A leader who may speak and other predators hunt prey, which food attracts and which forests hide.

    A predator observes its velocity and position, then relative positions of obstacles, food and forests, of all
    other agents, velocities of the prey, then for each forest whether it is in it (1 or -1), then the leader's word.
    Positions and velocities of agents are zero while it cannot see them: somebody in a forest sees who shares a forest
    with it, others see who is in none, and the leader sees everybody.

    Reward of a predator: 5 for each pair of a prey and a predator that overlap, minus 0.1 times the distance to the
    nearest prey.
    """

    def __init__(
        self,
        n_envs: int,
        num_good: int = 2,
        num_adversaries: int = 4,
        num_obstacles: int = 1,
        num_food: int = 2,
        max_cycles: int = 25,
        num_forests: int = 2,
        prey: str = "flee",
        device: str = "cpu",
    ):
        self._set_prey("simple_world_comm", prey, num_good)
        check_least("simple_world_comm", 0, num_obstacles=num_obstacles, num_forests=num_forests)
        check_least("simple_world_comm", 1, num_food=num_food, num_adversaries=num_adversaries)
        self._n_forests = num_forests
        names = ["leadadversary_0", *(f"adversary_{i}" for i in range(num_adversaries - 1))]
        words = [4] + [0] * (num_adversaries - 1)
        things = [("landmark", 0.2, num_obstacles), ("food", 0.03, num_food), ("forest", 0.3, num_forests)]
        n_marks, n_others = num_obstacles + num_food + num_forests, num_adversaries + num_good - 1
        super().__init__(
            [Body(n, size=0.075, accel=3.0, max_speed=1.0, n_words=w) for n, w in zip(names, words, strict=True)]
            + [Body(f"agent_{i}", size=0.045, accel=4.0, max_speed=1.3) for i in range(num_good)],
            [Body(f"{n} {i}", size=s, collides=n == "landmark", movable=False) for n, s, k in things for i in range(k)],
            [4 + 2 * (n_marks + n_others + num_good) + num_forests + 4] * num_adversaries,
            n_envs,
            max_cycles,
            device,
        )
        self._to_prey = self._pairs([range(num_adversaries, n_others + 1)] * num_adversaries)

    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        n, n_agents = self.spec.n_agents, len(self._agents)
        forests = slice(n_agents + len(self._landmarks) - self._n_forests, None)
        inside = self._distance[:, :, forests] < self._reach[:, forests]  # [E, I, F]
        visible = self._visible(inside)
        landmarks = self._seen(self._relative, self._to_marks)
        others = self._seen(self._relative * visible, self._others)
        speeds = pad(self._velocity, (0, 0, 0, len(self._landmarks))).unsqueeze(1).expand_as(self._relative)
        prey = self._seen(speeds * visible, self._to_prey)
        where = 2.0 * inside[:, :n] - 1
        said = self._words[:, :1].expand(-1, n, -1)
        return [torch.cat([self._velocity[:, :n], self._position[:, :n], landmarks, others, prey, where, said], dim=2)]

    def _visible(self, inside: Bool[Tensor, "E I F"]) -> Bool[Tensor, "E I K 1"]:
        """Whether an agent sees a body, given who is in which forest; landmarks are always seen."""
        together = (inside[:, :, None] & inside[:, None]).any(dim=3)  # [E, I, I]
        outside = ~inside.any(dim=2)
        visible = together | (outside[:, :, None] & outside[:, None])
        visible[:, 0] = True  # to the leader
        return pad(visible, (0, len(self._landmarks)), value=True)[..., None]

    def _reward(self) -> Float[Tensor, " E"]:
        n, n_agents = self.spec.n_agents, len(self._agents)
        nearest = self._distance[:, :n, n:n_agents].amin(dim=2).sum(dim=1)
        return 5.0 * n * self._caught().sum(dim=(1, 2)) - 0.1 * nearest


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
