"""The multi-agent particle environments in batches: what all tasks share. `mpe_tasks` lists the tasks.

They are those of mpe2 (Lowe et al. 2017; Terry et al. 2021), stepped E at once in PyTorch. From equal states, equal
actions lead to the numbers of `mpe2/<name>`; only the random states that episodes begin with are others.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding, one_hot, pad

from k24lab.envs.base import EnvSpec, Step, VecEnv, check_actions
from k24lab.envs.mpe2 import MOVES
from k24lab.envs.scene import Scene, mpe_action, mpe_scene
from k24lab.errors import ConfigError

TIME_STEP = 0.1  # seconds
DAMPING = 0.25  # share of the velocity that is lost in an env step
STIFFNESS = 100.0  # of a contact: force per overlap
SOFTNESS = 0.001  # distance over which a contact sets in
NOT_BEGUN = -1  # env steps before the first reset
EXACT = torch.float64  # of all physics, as in mpe2: contacts make small differences grow


@dataclass(frozen=True)
class Body:
    """An agent, or a landmark, which never moves. Lengths are those of the square [-1, 1]^2."""

    name: str
    size: float = 0.05  # radius
    collides: bool = True
    movable: bool = True  # an agent that is not has no move but to stay, and must not collide
    mass: float = 1.0
    accel: float = 5.0  # force of a move
    max_speed: float = inf
    n_words: int = 0  # 0: it is silent

    @property
    def n_actions(self) -> int:
        """Five moves if it is movable, times its words if it has any."""
        return (len(MOVES) if self.movable else 1) * max(self.n_words, 1)


class MpeEnv(VecEnv):
    """E copies of one task; the first agents are the team, and a script plays the others.

    - State: all observations of the team without padding. Team reward: the sum of its agents' rewards.
    - Truncated: `max_cycles` env steps are over. Terminated: only with the option `terminate_on_success`.
    - Randomness: all that chance decides in an episode is drawn at its reset, on the CPU, so that a seed gives the
      same episode on every device.

    There are I agents, in the team or scripted, and K = I + L bodies with the landmarks; W is the number of words.
    A task computes observations and rewards from the attributes below.
    """

    _position: Float[Tensor, "E I 2"]
    _velocity: Float[Tensor, "E I 2"]
    _words: Float[Tensor, "E I W"]  # of those that speak, one-hot; zero after a reset
    _marks: Float[Tensor, "E L 2"]  # positions of landmarks
    _relative: Float[Tensor, "E I K 2"]  # positions of all bodies, agents first, as each agent sees them
    _distance: Float[Tensor, "E I K"]  # infinite of an agent from itself

    def __init__(
        self,
        agents: Sequence[Body],
        landmarks: Sequence[Body],
        obs_dims: Sequence[int],
        n_envs: int,
        max_cycles: int,
        device: str,
        ends_early: bool = False,
    ):
        """Build the environments: `obs_dims` are those of the team. With `ends_early`, `_success` ends an episode."""
        self._agents, self._landmarks, self._ends_early = tuple(agents), tuple(landmarks), ends_early
        self._names = [agent.name for agent in agents[: len(obs_dims)]]
        self.spec = EnvSpec(
            n_envs=n_envs,
            n_agents=len(obs_dims),
            obs_dims=tuple(obs_dims),
            n_actions=tuple(agent.n_actions for agent in agents[: len(obs_dims)]),
            state_dim=sum(obs_dims),
            episode_limit=max_cycles,
            shortest_episode=1 if ends_early else max_cycles,
        )
        self._device, self._n_words = torch.device(device), max(agent.n_words for agent in agents)
        self._set_constants()
        self._t = NOT_BEGUN
        self._terminated = self._none

    def _set_constants(self) -> None:
        agents, bodies = self._agents, [*self._agents, *self._landmarks]
        n_agents, n_bodies = len(agents), len(bodies)
        size, collides = self._constant([b.size for b in bodies]), self._constant([b.collides for b in bodies]) > 0
        itself = torch.eye(n_agents, n_bodies, dtype=torch.bool, device=self._device)
        self._itself = torch.zeros_like(itself, dtype=EXACT).masked_fill_(itself, inf)
        self._reach = size[:n_agents, None] + size  # [I, K]: nearer bodies overlap
        solid = collides[:n_agents, None] & collides & ~itself
        self._touch = torch.where(solid, self._reach, -inf)  # [I, K]: as `_reach`, of bodies that push each other
        self._any_contact, self._any_limit = bool(solid.any()), any(a.max_speed < inf for a in agents)
        self._zero, self._max_speed = self._constant([0.0]), self._constant([[a.max_speed] for a in agents])
        gain = self._constant([[TIME_STEP / a.mass] for a in agents])  # of velocity, from a force
        self._contact_gain = -STIFFNESS * SOFTNESS * gain
        accel = self._constant([[a.accel] for a in agents])
        self._moves = torch.from_numpy(MOVES).to(self._device)
        self._pushes = ((gain * accel)[:, None] * self._moves).flatten(0, 1)  # [I * moves, 2]
        self._first_push = torch.arange(n_agents, device=self._device) * len(MOVES)
        self._others = self._pairs([[j for j in range(n_agents) if j != i] for i in range(self.spec.n_agents)])
        self._to_marks = self._pairs([range(n_agents, n_bodies)] * self.spec.n_agents)
        self._n_moves = torch.tensor([len(MOVES) if a.movable else 1 for a in agents], device=self._device)
        n_actions = torch.tensor(self.spec.n_actions, device=self._device)
        legal = torch.arange(self.spec.action_dim, device=self._device) < n_actions[:, None]
        self._available = legal.expand(self.spec.n_envs, -1, -1).clone()
        self._first_action, self._last_action = torch.zeros_like(n_actions), n_actions - 1
        self._none = torch.zeros(self.spec.n_envs, dtype=torch.bool, device=self._device)

    def reset(self, seed: int) -> Step:
        """Start E new episodes, the same on every device."""
        self._t, self._terminated = 0, self._none
        self._place(self._start(torch.Generator().manual_seed(seed)).to(self._device))
        return self._step(self._no_reward())

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """Move everything by one env step; environments that have ended ignore their actions.

        Raises:
            ValueError: there was no reset yet, or an agent does not have its action.
        """
        if self._t == NOT_BEGUN:
            raise ValueError("step before the first reset")
        if self._t >= self.spec.episode_limit or (self._ends_early and bool(self._terminated.all())):
            return self._step(self._no_reward())
        actions, ended = actions.to(self._device).long(), self._terminated
        if self._ends_early:
            actions = actions.masked_fill(ended[:, None], 0)
        if not torch.equal(actions.clamp(self._first_action, self._last_action), actions):
            check_actions(actions, self._available, ended, self._names)
        before = self._position, self._velocity
        self._move(torch.cat([actions, self._script()], dim=1) if len(self._agents) > len(self._names) else actions)
        if self._ends_early:
            self._position = torch.where(ended[:, None, None], before[0], self._position)
            self._velocity = torch.where(ended[:, None, None], before[1], self._velocity)
        self._t += 1
        self._measure()
        self._apply_rules()
        reward = self._reward()
        if self._ends_early:
            reward = reward.masked_fill(ended, 0)
            if self._t < self.spec.episode_limit:
                self._terminated = ended | self._success()
        return self._step(reward)

    def scene(self, e: int) -> Scene:
        """Agents, landmarks and opponents, as `mpe2/<name>` shows them."""
        return mpe_scene(self._as_world(e), self._names)

    def action_name(self, agent: int, action: int) -> str:
        """Move and word."""
        body = self._agents[agent]
        return mpe_action(SimpleNamespace(movable=body.movable, silent=not body.n_words), action)

    @abstractmethod
    def _start(self, generator: torch.Generator) -> Float[Tensor, "E K 2"]:
        """Draw an episode: the positions that it begins with, which are returned, and what else a task keeps."""

    @abstractmethod
    def _observe(self) -> list[Float[Tensor, "E n O"]]:
        """Observations of the team, in its order: one array for each run of agents with observations of one size."""

    @abstractmethod
    def _reward(self) -> Float[Tensor, " E"]:
        """The sum of the team's rewards for the env step that led here."""

    def _script(self) -> Int[Tensor, "E P"]:
        """Actions of the agents that are not in the team."""
        raise NotImplementedError

    def _apply_rules(self) -> None:
        """What an env step changes beyond the physics."""

    def _success(self) -> Bool[Tensor, " E"]:
        """Whether an episode ends before its time."""
        raise NotImplementedError

    def _goals(self, e: int) -> dict[int, tuple[int, int]]:
        """Agents who know a goal -> the agent that must reach it, and the landmark; empty where there are none."""
        return {}

    def _place(self, bodies: Float[Tensor, "E K 2"]) -> None:
        """Put agents and landmarks somewhere, at rest and in silence."""
        n_agents = len(self._agents)
        self._position, self._marks = bodies[:, :n_agents], bodies[:, n_agents:]
        self._velocity, self._words = self._zeros(n_agents, 2), self._zeros(n_agents, self._n_words)
        self._measure()

    def _move(self, actions: Int[Tensor, "E I"]) -> None:
        """New positions from the old velocities; new velocities from moves and from contacts at the old positions."""
        moves = actions % self._n_moves if self._n_words else actions
        velocity = embedding(moves + self._first_push, self._pushes).add_(self._velocity, alpha=1 - DAMPING)
        if self._any_contact:
            overlap = torch.logaddexp(self._zero, self._touch.sub(self._distance).div_(SOFTNESS))  # of SOFTNESS
            force = (overlap.div_(self._distance).unsqueeze(3) * self._relative).sum(dim=2)
            velocity.addcmul_(force, self._contact_gain)
        if self._any_limit:
            speed = torch.linalg.vector_norm(velocity, dim=2, keepdim=True)
            velocity.mul_((self._max_speed / speed).clamp_max_(1))
        self._position = self._position.add(self._velocity, alpha=TIME_STEP)
        self._velocity = velocity
        if self._n_words:
            self._words = one_hot(actions // self._n_moves, self._n_words).to(EXACT)

    def _measure(self) -> None:
        """Set `_relative` and `_distance`."""
        bodies = torch.cat([self._position, self._marks], dim=1)
        self._relative = bodies.unsqueeze(1) - self._position.unsqueeze(2)
        self._distance = torch.linalg.vector_norm(self._relative, dim=3).add_(self._itself)

    def _seen(
        self, values: Float[Tensor, "E I K D"], pairs: Int[Tensor, "N M"], n: int | None = None
    ) -> Float[Tensor, "E N S"]:
        """Values of M pairs of each agent, or of its `n` nearest, nearest first, with zeros where M < n."""
        near = values.flatten(1, 2).index_select(1, pairs.flatten()).unflatten(1, pairs.shape)
        if n is not None:
            order = self._distance.flatten(1)[:, pairs].argsort(dim=2)[..., :n]
            near = near.gather(2, order[..., None].expand(-1, -1, -1, near.shape[3]))
            near = pad(near, (0, 0, 0, n - order.shape[2]))
        return near.flatten(2)

    def _step(self, reward: Float[Tensor, " E"]) -> Step:
        groups, size = [group.float() for group in self._observe()], self.spec.obs_dim
        obs, state = groups[0], groups[0].flatten(1)
        if len(groups) > 1:
            obs = torch.cat([pad(group, (0, size - group.shape[2])) for group in groups], dim=1)
            state = torch.cat([group.flatten(1) for group in groups], dim=1)
        return Step(
            obs=obs,
            state=state,
            avail_actions=self._available,
            reward=reward.float(),
            terminated=self._terminated,
            truncated=~self._terminated if self._t >= self.spec.episode_limit else self._none,
        )

    def _as_world(self, e: int) -> SimpleNamespace:
        """Environment e as the objects that mpe2 has."""
        rows = torch.cat([self._position[e], self._marks[e]]).cpu()
        things = [
            SimpleNamespace(name=body.name, size=body.size, collide=body.collides, state=SimpleNamespace(p_pos=row))
            for body, row in zip([*self._agents, *self._landmarks], rows, strict=True)
        ]
        agents, landmarks = things[: len(self._agents)], things[len(self._agents) :]
        for i, (owner, goal) in self._goals(e).items():
            agents[i]._goal_a, agents[i]._goal_b = agents[owner], landmarks[goal]
        return SimpleNamespace(agents=agents, landmarks=landmarks)

    def _pairs(self, bodies: Sequence[Sequence[int]]) -> Int[Tensor, "N M"]:
        """Where some bodies, as each agent of the team sees them, are in arrays [E, I * K]."""
        pairs = [[i * len(self._itself[0]) + j for j in row] for i, row in enumerate(bodies)]
        return torch.tensor(pairs, dtype=torch.int64, device=self._device).reshape(len(bodies), -1)

    def _no_reward(self) -> Float[Tensor, " E"]:
        return torch.zeros(self.spec.n_envs, device=self._device)

    def _zeros(self, *shape: int) -> Float[Tensor, "E ..."]:
        return torch.zeros(self.spec.n_envs, *shape, dtype=EXACT, device=self._device)

    def _constant(self, values: Sequence[object]) -> Float[Tensor, "..."]:
        return torch.tensor(values, dtype=EXACT, device=self._device)

    def _uniform(self, generator: torch.Generator, n: int, bound: float) -> Float[Tensor, "E n 2"]:
        """Points in a square [-bound, bound]^2, on the CPU."""
        return bound * (2 * torch.rand(self.spec.n_envs, n, 2, dtype=EXACT, generator=generator) - 1)


def check_least(task: str, least: int, **numbers: int) -> None:
    """Raises ConfigError for an option whose number is below `least`."""
    for option, number in numbers.items():
        if number < least:
            raise ConfigError(f"mpe/{task}: {option} = {number} must be at least {least}")


def check_share(task: str, **shares: float) -> None:
    """Raises ConfigError for an option that is no share."""
    for option, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"mpe/{task}: {option} = {share} must be in 0 … 1")


def n_nearest(task: str, option: str, n: object) -> int | None:
    """How many of the nearest an agent sees, None for all; raises ConfigError for anything but a whole number."""
    if n is None or (isinstance(n, int) and n > 0):
        return n
    raise ConfigError(f"mpe/{task}: {option} = {n!r} must be a whole number, at least 1, or None")
