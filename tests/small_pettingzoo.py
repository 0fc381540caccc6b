"""A parallel environment whose every number is known, and what tests play on it."""

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from k24lab.envs.base import Step
from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.vector_env import SerialVector


class ToyEnv:
    """Agents `a` (2 observations, 3 actions) and `b` (3 observations, 5 actions).

    At env step t they see [t, start] and [t, start, b's last action] and get t and 10 t; `exits` says
    when who leaves and how: {"a": (2, "terminated")}.
    """

    possible_agents = ("a", "b")
    max_cycles = 100

    def __init__(self, exits: dict[str, tuple[int, str]] | None = None):
        self.exits = exits or {}
        self.closed = False
        self.played: list[dict[str, int]] = []

    def reset(self, seed: int):
        self.t, self.agents, self.action = 0, list(self.possible_agents), -1
        self.start = np.random.default_rng(seed).uniform()
        return self.observe(self.agents), {agent: {} for agent in self.agents}

    def observe(self, agents):
        seen = {"a": np.array([self.t, self.start]), "b": np.array([self.t, self.start, self.action])}
        return {agent: seen[agent] for agent in agents}

    def step(self, actions: dict[str, int]):
        assert set(actions) == set(self.agents)
        self.played.append(actions)
        self.t, self.action, acting = self.t + 1, actions.get("b", -1), self.agents
        flags = {
            how: {
                agent: how in self.exits.get(agent, (0, ""))[1] and self.exits[agent][0] == self.t for agent in acting
            }
            for how in ("terminated", "truncated")
        }
        self.agents = [a for a in acting if not flags["terminated"][a] and not flags["truncated"][a]]
        reward = {agent: float(self.t * {"a": 1, "b": 10}[agent]) for agent in acting}
        return self.observe(acting), reward, flags["terminated"], flags["truncated"], {agent: {} for agent in acting}

    def observation_space(self, agent: str):
        return Box(-100, 100, ({"a": 2, "b": 3}[agent],))

    def action_space(self, agent: str):
        return Discrete({"a": 3, "b": 5}[agent])

    def close(self):
        self.closed = True


def lift(make, n_envs: int = 1, episode_limit: int | None = None) -> SerialVector:
    return SerialVector(lambda: PettingZooEnv(make(), episode_limit), n_envs)


def envs_in(env: SerialVector) -> list:
    """The environments inside."""
    return [single.env for single in env.envs]


def still(env: SerialVector) -> torch.Tensor:
    return torch.zeros(env.spec.n_envs, env.spec.n_agents, dtype=torch.long)


def random_actions(step: Step, generator: torch.Generator) -> torch.Tensor:
    n_envs, n_agents, _ = step.avail_actions.shape
    chosen = torch.multinomial(step.avail_actions.flatten(0, 1).float(), 1, generator=generator)
    return chosen.view(n_envs, n_agents)


def rollout(env: SerialVector, seed: int, action_seed: int = 0) -> Iterator[Step]:
    """Every step of one episode, with random actions."""
    generator, step = torch.Generator().manual_seed(action_seed), env.reset(seed)
    yield step
    while not (step.terminated | step.truncated).all():
        step = env.step(random_actions(step, generator))
        yield step


def play(env: SerialVector, seed: int, action_seed: int = 0) -> list[Step]:
    return list(rollout(env, seed, action_seed))


def same(first: list[Step], second: list[Step]) -> bool:
    fields = ("obs", "state", "avail_actions", "reward", "terminated", "truncated", "alive")
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True) for name in fields
    )
