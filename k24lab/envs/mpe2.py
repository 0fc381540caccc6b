"""Tasks of mpe2; where it has two sides, a fixed rule plays one of them, so that a cooperative task is left."""

import importlib
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from typing import Any

import numpy as np

from k24lab.envs.base import TaskBuilder
from k24lab.envs.pettingzoo import ParallelEnv
from k24lab.envs.pettingzoo_import import factory_options, pettingzoo_builder
from k24lab.errors import ConfigError, unknown

MPE2_TASKS: dict[str, str] = {  # name -> module of mpe2
    "collect_treasure": "collect_treasure_v1",
    "simple_formation": "simple_formation_v1",
    "simple_line": "simple_line_v1",
    "simple_reference": "simple_reference_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4",
    "simple_spread": "simple_spread_v3",
    "simple_tag": "simple_tag_v3",
    "simple_world_comm": "simple_world_comm_v3",
}
WITH_PREY = ("simple_tag", "simple_world_comm")  # a script plays the prey
SCREEN_OPTIONS = {"render_mode", "dynamic_rescaling", "benchmark_data"}  # of mpe2: they change nothing in an episode

# mpe2's `world` and random numbers of its episode -> actions by name of the agents that the script plays.
Script = Callable[[Any, np.random.Generator], dict[str, int]]

MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # mpe2's five actions
LOOK_AHEAD = 0.2  # seconds (two env steps): the rule works on where the prey's own velocity takes it
EDGE = 0.8  # of the square [-1, 1]^2: beyond it the walls push harder than a distant predator


def flee(world: Any, rng: np.random.Generator) -> dict[str, int]:
    """Actions by agent name of all good agents (`simple_tag`, `simple_world_comm`).

    A prey at p goes in the direction nearest to Σ_a (p - p_a) / |p - p_a|³ - 2 sign(p) exp(8 (|p| - EDGE)):
    away from predators, the near ones most, and away from the walls, as its own reward asks. It is
    deterministic, knows all positions (in `simple_world_comm` also those inside forests), ignores
    obstacles and food, and obeys mpe2's own limits of speed. Three predators that
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


class Mpe2ParallelEnv:
    """A parallel view of a turn-based environment of mpe2, in which `script` plays the agents that it names.

    It steps mpe2's environment itself: mpe2's own `parallel_env` observes for every agent once more before its turn
    and checks every call, which makes it 1.7 times slower.
    """

    def __init__(self, raw_env: Any, script: Script | None = None):
        self._env, self.world = raw_env, raw_env.world
        self._script = script
        self.max_cycles = raw_env.max_cycles
        self.observation_space, self.action_space = raw_env.observation_space, raw_env.action_space
        self._rng = np.random.default_rng(0)
        scripted = script(self.world, self._rng) if script else {}
        if script and not scripted:
            raise ValueError("there is no good agent that the team could hunt")
        self.possible_agents = [agent for agent in raw_env.possible_agents if agent not in scripted]
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
        for agent in env.agents:  # everything moves after the last one
            env.step(actions[agent])
        terminated = {agent: env.terminations[agent] for agent in team}
        truncated = {agent: env.truncations[agent] for agent in team}
        self.agents = [agent for agent in team if not (terminated[agent] or truncated[agent])]
        obs = {agent: env.observe(agent) for agent in team}
        return obs, {agent: env.rewards[agent] for agent in team}, terminated, truncated, {}

    def close(self) -> None:
        """Close mpe2's environment."""
        self._env.close()


def mpe2_builder(name: str) -> TaskBuilder:
    """The builder of one of MPE2_TASKS, with the options of its environment. Raises ConfigError if mpe2 is missing."""
    return pettingzoo_builder(f"mpe2/{name}", partial(_load, name))


def _load(name: str) -> tuple[Callable[..., ParallelEnv], list[Parameter]]:
    try:
        raw_env = importlib.import_module(f"mpe2.{MPE2_TASKS[name]}").raw_env
    except ImportError as error:
        raise ConfigError(f"task 'mpe2/{name}' needs mpe2 ({error}): pip install 'k24lab[mpe]'") from error
    options = [option for option in factory_options(raw_env) if option.name not in SCREEN_OPTIONS]
    if name in WITH_PREY:
        options.append(Parameter("prey", Parameter.KEYWORD_ONLY, default="flee"))
    return partial(_build, raw_env, name in WITH_PREY), options


def _build(raw_env: Callable[..., Any], has_prey: bool, prey: str = "flee", **options: Any) -> ParallelEnv:
    if prey not in PREY:
        raise ConfigError(unknown("prey", prey, PREY))
    return Mpe2ParallelEnv(raw_env(**options), PREY[prey] if has_prey else None)
