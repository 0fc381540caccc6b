"""Worlds of mpe2 in which a fixed rule plays one side, so that a task with two sides becomes a cooperative one."""

from collections.abc import Callable
from typing import Any

import numpy as np

# The world and random numbers of its episode -> actions by name of the agents that it plays.
Script = Callable[[Any, np.random.Generator], dict[str, int]]

MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # mpe2's five actions
LOOK_AHEAD = 0.2  # seconds (two env steps): the rule works on where the prey's own velocity takes it
EDGE = 0.8  # of the square [-1, 1]^2: beyond it the walls push harder than a distant predator


def flee(world: Any, rng: np.random.Generator) -> dict[str, int]:
    """Actions by agent name of all good agents of an mpe2 world (`simple_tag`, `simple_world_comm`).

    A prey at p goes in the direction nearest to Σ_a (p - p_a) / |p - p_a|³ - 2 sign(p) exp(8 (|p| - EDGE)):
    away from predators, the near ones most, and away from the walls, as its own reward asks. It is
    deterministic, knows all positions (in `simple_world_comm` also those inside forests), ignores
    obstacles and food, and obeys the world's own limits of speed. Three predators that
    move at random catch it in one of forty episodes.
    """
    predators = np.array([agent.state.p_pos for agent in world.agents if agent.adversary])
    actions = {}
    for prey in world.agents:
        if not prey.adversary:
            position = prey.state.p_pos + LOOK_AHEAD * prey.state.p_vel
            away = position - predators
            distance = np.sqrt((away**2).sum(axis=1, keepdims=True)) + 1e-6  # on top of a predator: no division by 0
            walls = 2 * np.sign(position) * np.exp(8 * (np.abs(position) - EDGE))
            actions[prey.name] = int(np.argmax(MOVES @ ((away / distance**3).sum(axis=0) - walls)))
    return actions


def wander(world: Any, rng: np.random.Generator) -> dict[str, int]:
    """Random actions of all good agents: a prey that random predators catch in one of five episodes."""
    return {agent.name: int(rng.integers(len(MOVES))) for agent in world.agents if not agent.adversary}


PREY: dict[str, Script] = {"flee": flee, "random": wander}


class Mpe2World:
    """A parallel view of a turn-based mpe2 world, in which `script` plays the agents that it names.

    It calls the world itself: mpe2's own `parallel_env` observes for every agent once more before its turn
    and checks every call, which makes it 1.7 times slower.
    """

    def __init__(self, world_env: Any, script: Script | None = None):
        self._env, self.world = world_env, world_env.world
        self._script = script
        self.max_cycles = world_env.max_cycles
        self.observation_space, self.action_space = world_env.observation_space, world_env.action_space
        self._rng = np.random.default_rng(0)
        scripted = script(world_env.world, self._rng) if script else {}
        if script and not scripted:
            raise ValueError("the world has no good agent that the team could hunt")
        self.possible_agents = [agent for agent in world_env.possible_agents if agent not in scripted]
        self.agents: list[str] = []

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
        """Observations of the agents that are not scripted, and no infos."""
        self._env.reset(seed=seed)
        self._rng = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        return {agent: self._env.observe(agent) for agent in self.agents}, {}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """PettingZoo's five dictionaries (observations, rewards, terminated, truncated, no infos)."""
        env, team = self._env, self.agents
        actions = actions | (self._script(env.world, self._rng) if self._script else {})
        for agent in env.agents:  # the world moves after the last one
            env.step(actions[agent])
        terminated = {agent: env.terminations[agent] for agent in team}
        truncated = {agent: env.truncations[agent] for agent in team}
        self.agents = [agent for agent in team if not (terminated[agent] or truncated[agent])]
        obs = {agent: env.observe(agent) for agent in team}
        return obs, {agent: env.rewards[agent] for agent in team}, terminated, truncated, {}

    def close(self) -> None:
        """Close the world."""
        self._env.close()
