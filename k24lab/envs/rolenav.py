"""RoleNav: the smallest environment in which a team provably needs to know who is who."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, VecEnv
from k24lab.envs.scene import Scene, Thing
from k24lab.errors import ConfigError

STEP_LENGTH = 0.12  # of a square [-1, 1]^2
ACTION_NAMES = ("stay", *"→←↑↓")
DIRECTIONS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


class RoleNav(VecEnv):
    """Agent i must reach goal i, but nothing in its observation says that it is agent i.

    Every agent sees its own position and the relative positions of all goals in one order (2 + 2N
    numbers). Five actions: stay, right, left, up, down. Team reward: the sum over agents of the decrease
    of the distance to their goals. Without identity the best that an agent can do is to go to the
    geometric median of the goals: for N = 3 that bounds the return by 1.45. With identity the
    straight way on the grid of steps returns 2.99, and 3.03 can be reached by agents that first walk into a wall, which
    moves their grid (3.13 would be all of the distance).

    With `n_types` the agents have unit types instead, drawn anew for each episode: an agent must reach the goal
    of its type, of `n_types` goals. Its index then tells nothing and its type everything, so the bounds per agent
    are those of `n_types` agents.

    With `n_roles` agents share goals for good: agent i always has goal i modulo `n_roles`, of `n_roles` goals. Agents
    of one role then have nothing to be different for. The bounds per agent are those of `n_roles` agents.
    """

    def __init__(
        self,
        n_envs: int,
        n_agents: int = 3,
        n_types: int = 0,
        n_roles: int = 0,
        episode_limit: int = 25,
        device: str = "cpu",
    ):
        _check(n_agents, n_types, n_roles)
        self._n_goals = n_types or n_roles or n_agents
        obs_dim = 2 + 2 * self._n_goals
        self.spec = EnvSpec(
            n_envs=n_envs,
            n_agents=n_agents,
            obs_dims=(obs_dim,) * n_agents,
            n_actions=(len(DIRECTIONS),) * n_agents,
            state_dim=n_agents * obs_dim,
            episode_limit=episode_limit,
            shortest_episode=episode_limit,  # nothing but the time limit ends one
            n_unit_types=n_types,
            unit_type_names=tuple(f"goal {k}" for k in range(n_types)),
        )
        self._device = torch.device(device)
        self._directions = DIRECTIONS.to(device)
        self._available = torch.ones(n_envs, n_agents, len(DIRECTIONS), dtype=torch.bool, device=device)
        self._position = self._goals = torch.zeros(n_envs, n_agents, 2, device=device)
        # Which goal is whose.
        self._role = torch.arange(n_agents, device=device).remainder(self._n_goals).expand(n_envs, -1)
        self._t = 0

    def reset(self, seed: int) -> Step:
        """Positions and goals uniform in the square, and so are types over the agents; the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        n_envs, n_agents = self.spec.n_envs, self.spec.n_agents
        # Drawn on the CPU, so that a seed means the same on every device.
        self._position = _uniform(n_envs, n_agents, generator).to(self._device)
        self._goals = _uniform(n_envs, self._n_goals, generator).to(self._device)
        if self.spec.n_unit_types:
            self._role = torch.randint(self._n_goals, (n_envs, n_agents), generator=generator).to(self._device)
        self._t = 0
        return self._step(self._no_reward())

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """Move every agent by one step; all episodes end together at the time limit."""
        if self._t >= self.spec.episode_limit:
            return self._step(self._no_reward())
        before = self._distance()
        self._position = (self._position + STEP_LENGTH * self._directions[actions]).clamp_(-1, 1)
        self._t += 1
        return self._step((before - self._distance()).sum(dim=1))

    def scene(self, e: int) -> Scene:
        """Agents, and each goal with the agents that must reach it."""
        role, names = self._role[e].tolist(), self.spec.unit_type_names
        things = [
            Thing("goal", x, y, owners=tuple(i for i, k in enumerate(role) if k == goal))
            for goal, (x, y) in enumerate(self._goals[e].tolist())
        ]
        things += [
            Thing("agent", x, y, owners=(i,), label=names[role[i]] if names else "")
            for i, (x, y) in enumerate(self._position[e].tolist())
        ]
        return Scene(tuple(things), low=(-1.0, -1.0), high=(1.0, 1.0))

    def action_name(self, agent: int, action: int) -> str:
        """An arrow, or that it stays."""
        return ACTION_NAMES[action]

    def _no_reward(self) -> Float[Tensor, " E"]:
        return torch.zeros(self.spec.n_envs, device=self._device)

    def _distance(self) -> Float[Tensor, "E N"]:
        own = self._goals.gather(1, self._role[..., None].expand(-1, -1, 2))
        return torch.linalg.vector_norm(own - self._position, dim=-1)

    def _step(self, reward: Float[Tensor, " E"]) -> Step:
        n_envs = self.spec.n_envs
        relative = self._goals[:, None] - self._position[:, :, None]  # [E, N agents, N goals, 2]
        obs = torch.cat([self._position, relative.flatten(2)], dim=-1)
        return Step(
            obs=obs,
            state=obs.flatten(1),
            avail_actions=self._available,
            reward=reward,
            terminated=torch.zeros(n_envs, dtype=torch.bool, device=self._device),
            truncated=torch.full((n_envs,), self._t >= self.spec.episode_limit, device=self._device),
            unit_type=self._role if self.spec.n_unit_types else None,
        )


def _check(n_agents: int, n_types: int, n_roles: int) -> None:
    if n_types < 0:
        raise ConfigError(f"rolenav: n_types = {n_types} must be at least 0")
    if not 0 <= n_roles <= n_agents:
        raise ConfigError(f"rolenav: n_roles = {n_roles} must be in 0 … n_agents = {n_agents}")
    if n_types and n_roles:
        raise ConfigError(f"rolenav: n_types = {n_types} and n_roles = {n_roles}: goals belong to types or to roles")


def _uniform(n_envs: int, n: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
    """Points in the square."""
    return torch.rand(n_envs, n, 2, generator=generator).mul_(2).sub_(1)
