"""A VMAS scenario whose every number is known, and what tests play on it."""

import random
import warnings

import numpy as np
import pytest
import torch

from k24lab.envs.base import Step, VecEnv
from k24lab.envs.vmas import VmasEnv

try:
    import vmas
    from vmas.simulator.core import Agent, World
    from vmas.simulator.scenario import BaseScenario
except ImportError:
    vmas, BaseScenario = None, object

needs_vmas = pytest.mark.skipif(vmas is None, reason="VMAS is not installed: pip install 'k24lab[vmas]'")

FIELDS = ("obs", "state", "avail_actions", "reward", "terminated", "truncated")


class Counter(BaseScenario):
    """Agents `a` (sees [t], 15 actions, gets t) and `b` (sees [t, start, noise], 9 actions, gets 3 t).

    `ends` is when each environment ends; `a` draws random numbers at each of its moves, and so does the building.
    """

    def make_world(self, batch_dim, device, ends=None, sides=False, crowded=False, **options):
        if options:
            raise TypeError(f"no options {options}")
        self.ends = torch.full((batch_dim,), 99) if ends is None else torch.tensor(ends)
        self.crowded = crowded
        self.built = torch.rand(batch_dim) + np.random.rand() + random.random()  # noqa: NPY002
        world = World(batch_dim, device)
        world.add_agent(Agent("a", discrete_action_nvec=[5, 3], adversary=sides))
        world.add_agent(Agent("b"))
        return world

    def reset_world_at(self, env_index=None):
        self.t = torch.zeros(self.world.batch_dim)
        self.start = self.built + torch.rand(self.world.batch_dim) + np.random.rand() + random.random()  # noqa: NPY002
        if self.crowded:
            warnings.warn("It is taking many iterations to spawn the entity", stacklevel=1)

    def process_action(self, agent):
        if agent.name == "a" and agent.action.u.any():
            torch.rand(1)

    def post_step(self):
        self.t += 1

    def observation(self, agent):
        if agent.name == "a":
            return self.t.unsqueeze(1)
        return torch.stack([self.t, self.start, torch.rand(self.world.batch_dim)], dim=1)

    def reward(self, agent):
        return self.t if agent.name == "a" else 3 * self.t.unsqueeze(1)  # VMAS's scenarios return both shapes

    def done(self):
        return self.t >= self.ends


def counter(n_envs: int = 2, **options) -> VmasEnv:
    return VmasEnv(Counter, n_envs, **options)


def still(env: VecEnv) -> torch.Tensor:
    return torch.zeros(env.spec.n_envs, env.spec.n_agents, dtype=torch.long)


def play(env: VecEnv, seed: int, n_steps: int = 12, action_seed: int = 0) -> list[Step]:
    generator, steps = torch.Generator().manual_seed(action_seed), [env.reset(seed)]
    shape = (env.spec.n_envs, env.spec.n_agents)
    for _ in range(n_steps):
        steps.append(env.step(torch.randint(min(env.spec.n_actions), shape, generator=generator)))
    return steps


def same(first: list[Step], second: list[Step]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in FIELDS)


def global_state() -> tuple:
    """Of torch and numpy; Python's own generator is left out, for beartype draws from it in these tests."""
    return torch.get_rng_state().tolist(), torch.initial_seed(), np.random.get_state()[1].tolist()  # noqa: NPY002
