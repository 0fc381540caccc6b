"""Level-Based Foraging and RWARE: teams that are one Gymnasium environment, with a tuple of spaces."""

import difflib
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

PREFIXES = {"lbforaging": "Foraging-", "rware": "rware-"}  # library -> what its Gymnasium ids begin with
LIMITS = ("_max_episode_steps", "max_steps")  # attributes of the two libraries


class TupleParallelEnv:
    """A parallel view of such an environment, whose agents are called agent_0, agent_1, ...

    Both libraries end an episode at their time limit with `terminated`; here that is a truncation, unless all food
    is eaten.
    """

    def __init__(self, env: Any):
        self._env, self._t = env, 0
        self.possible_agents = [f"agent_{i}" for i in range(len(env.observation_space))]
        self.agents: list[str] = []
        self.max_cycles = int(next(getattr(env, name) for name in LIMITS if hasattr(env, name)))
        if hasattr(env, "players"):
            _order(env)

    def observation_space(self, agent: str) -> Any:
        """The agent's entry of the tuple."""
        return self._env.observation_space[self.possible_agents.index(agent)]

    def action_space(self, agent: str) -> Any:
        """The agent's entry of the tuple."""
        return self._env.action_space[self.possible_agents.index(agent)]

    def reset(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
        """Observations, and no infos."""
        self.agents, self._t = self.possible_agents[:], 0
        return self._by_agent(self._env.reset(seed=seed)[0]), {}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """PettingZoo's five dictionaries (observations, rewards, terminated, truncated, no infos)."""
        self._t += 1
        obs, rewards, ended, cut, _ = self._env.step([actions[agent] for agent in self.possible_agents])
        late = self._t >= self.max_cycles
        solved = late and hasattr(self._env, "field") and not self._env.field.any()
        truncated = bool(cut) or (late and not solved)
        self.agents = [] if ended or truncated else self.agents
        flags = [bool(ended) and not truncated] * len(obs), [truncated] * len(obs)
        by_agent = self._by_agent
        return by_agent(obs), by_agent(rewards), by_agent(flags[0]), by_agent(flags[1]), {}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _by_agent(self, values: Any) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))


def _order(env: Any) -> None:
    """Let the players of Level-Based Foraging hash as numbers: it walks through sets of them.

    A hash by memory address, as objects have it, would let the same seed and actions give another episode.
    """
    # Players are equal only to themselves, as before.
    methods = {"__hash__": lambda self: self.number, "__eq__": lambda self, other: self is other}
    numbered = type("Player", (type(env.players[0]),), methods)
    env.players = [numbered() for _ in env.players]
    for number, player in enumerate(env.players):
        player.number = number


def tuple_builder(library: str, name: str) -> TaskBuilder:
    """The builder of an environment of `lbforaging` or `rware` by its Gymnasium id.

    Its options are the keyword arguments of the library's class (`max_episode_steps=25`).

    Raises:
        ConfigError: an unknown id, or the library is missing.
    """
    _check(library, name)
    return pettingzoo_builder(f"{library}/{name}", partial(_load, library, name))


def _check(library: str, name: str) -> None:
    """Import the library, which registers its environments, and look the id up."""
    import gymnasium

    try:
        importlib.import_module(library)
    except ImportError as error:
        missing = f"task '{library}/{name}' needs {library} ({error}): pip install 'k24lab[{library}]'"
        raise ConfigError(missing) from error
    ids = [key for key in gymnasium.registry if key.startswith(PREFIXES[library])]
    if name not in ids:
        near = difflib.get_close_matches(name, ids, n=3, cutoff=0.5)  # of hundreds
        raise ConfigError(unknown(f"{library} environment", name, near or ids[:3]) + f", and {len(ids)} in all")


def _load(library: str, name: str) -> tuple[Callable[..., ParallelEnv], list[Parameter]]:
    from gymnasium import spec
    from gymnasium.envs.registration import load_env_creator

    _check(library, name)
    registered = spec(name)
    options = factory_options(load_env_creator(str(registered.entry_point)))
    defaults = registered.kwargs
    return partial(_build, library, name), [o.replace(default=defaults.get(o.name, o.default)) for o in options]


def _build(library: str, name: str, **options: Any) -> ParallelEnv:
    import gymnasium

    _check(library, name)  # again: a worker process has not imported it
    return TupleParallelEnv(gymnasium.make(name, disable_env_checker=True, **options).unwrapped)
