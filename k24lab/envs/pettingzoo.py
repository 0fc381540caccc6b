"""Any PettingZoo parallel environment, and the tasks of mpe2, as a batch of worlds stepped one after the other."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, VecEnv, check_actions
from k24lab.envs.scripted import Mpe2World, Script, flee
from k24lab.errors import ConfigError, unknown

ParallelEnv = Any  # pettingzoo.ParallelEnv, or any class with its methods: the package is imported only when used

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "max_episode_steps", "episode_limit")
EPISODE_LIMIT = inspect.Parameter("episode_limit", inspect.Parameter.KEYWORD_ONLY, default=None)
SCREEN_OPTIONS = {"render_mode", "dynamic_rescaling", "benchmark_data"}  # of mpe2: they change nothing in an episode

MPE2_TASKS: dict[str, tuple[str, Script | None]] = {  # name -> module of mpe2, script of the other side
    "collect_treasure": ("collect_treasure_v1", None),
    "simple_formation": ("simple_formation_v1", None),
    "simple_line": ("simple_line_v1", None),
    "simple_reference": ("simple_reference_v3", None),
    "simple_speaker_listener": ("simple_speaker_listener_v4", None),
    "simple_spread": ("simple_spread_v3", None),
    "simple_tag": ("simple_tag_v3", flee),
    "simple_world_comm": ("simple_world_comm_v3", flee),
}


class PettingZooEnv(VecEnv):
    """E instances of a parallel environment, stepped serially in this process.

    - Agents are `possible_agents` in their order; the team reward is the sum over all of them.
    - Observations are flattened (Discrete: one-hot) and padded with zeros.
    - Available actions: an agent's own Discrete range, less what an `action_mask` in its observation or
      info forbids. Any other action is an error.
    - An agent that is gone while others go on has alive False, a zero observation, and only action 0,
      which is not sent to the world.
    - Ended: no agent is left. Truncated if one of the last to leave was truncated and not terminated, or if
      `episode_limit` env steps are over with agents left; else terminated. The last observation holds what
      the agents of the last step saw.
    - State: the world's own `state()`, or all agents' observations without the padding.
    - Environment e is reset with `SeedSequence([seed, e])`, so no two of them share their randomness.
    """

    def __init__(self, make: Callable[[], ParallelEnv], n_envs: int, episode_limit: int | None = None):
        """Build `n_envs` worlds with `make`; `episode_limit` (env steps) may be left out if the world names its own.

        Raises:
            ConfigError: not a parallel environment, an observation or action space that cannot be batched,
                no episode limit, or a `state()` that is no array.
        """
        if n_envs < 1:
            raise ConfigError(f"n_envs = {n_envs}: must be at least 1")
        first = _check_parallel(make())
        self._envs = [first, *(make() for _ in range(n_envs - 1))]
        self._agents = list(first.possible_agents)
        encoders = [_encoder(agent, first.observation_space(agent)) for agent in self._agents]
        spaces = [_discrete(agent, first.action_space(agent)) for agent in self._agents]
        self._encode = [encode for _, encode in encoders]
        self._first_action = [int(space.start) for space in spaces]
        obs_dims = tuple(size for size, _ in encoders)
        state_dim = _own_state_dim(first)
        self._own_state = state_dim is not None
        self.spec = EnvSpec(
            n_envs=n_envs,
            n_agents=len(self._agents),
            obs_dims=obs_dims,
            n_actions=tuple(int(space.n) for space in spaces),
            state_dim=sum(obs_dims) if state_dim is None else state_dim,
            episode_limit=_episode_limit(first, episode_limit),
        )
        self._real_obs = np.arange(self.spec.obs_dim) < np.array(obs_dims)[:, None]  # [N, O]: not padding
        self._real_actions = np.arange(self.spec.action_dim) < np.array(self.spec.n_actions)[:, None]  # [N, A]
        self._t: list[int] = []  # env steps of each, empty before the first reset
        self._here: list[list[int]] = [[] for _ in range(n_envs)]  # agents that act next (or acted last)
        self._rows = _buffers(self.spec)
        self._slots = [[row[:size] for row, size in zip(obs, obs_dims, strict=True)] for obs in self._rows["obs"]]

    def reset(self, seed: int) -> Step:
        """Start E new episodes, each the same for the same seed, whatever was played before."""
        self._t = [0] * self.spec.n_envs
        for name in ("reward", "terminated", "truncated"):
            self._rows[name][:] = 0
        for e, env in enumerate(self._envs):
            obs, infos = env.reset(seed=int(np.random.SeedSequence([seed, e]).generate_state(1)[0]))
            self._write(e, [i for i, agent in enumerate(self._agents) if agent in env.agents], obs, infos)
        return self._step()

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One step of every environment that has not ended.

        Raises:
            ValueError: an action that is not available, or a call before the first reset.
        """
        if not self._t:
            raise ValueError("step before the first reset")
        ended = self._rows["terminated"] | self._rows["truncated"]
        chosen = actions.cpu().numpy()
        check_actions(chosen, self._rows["avail_actions"], ended, self._agents)
        self._rows["reward"][:] = 0
        for e in np.flatnonzero(~ended):
            self._step_one(int(e), chosen[e].tolist())
        return self._step()

    def close(self) -> None:
        """Close every world."""
        for env in self._envs:
            env.close()

    def _step_one(self, e: int, actions: list[int]) -> None:
        env, here = self._envs[e], self._here[e]
        sent = {self._agents[i]: actions[i] + self._first_action[i] for i in here}
        obs, reward, terminated, truncated, infos = env.step(sent)
        self._t[e] += 1
        self._rows["reward"][e] = sum(reward.values())
        gone = {agent for agent in sent if terminated.get(agent) or truncated.get(agent)}
        left = [i for i, agent in enumerate(self._agents) if agent in env.agents and agent not in gone]
        out_of_time = any(truncated.get(agent) and not terminated.get(agent) for agent in sent)
        self._rows["truncated"][e] = self._t[e] >= self.spec.episode_limit if left else out_of_time
        self._rows["terminated"][e] = not left and not out_of_time
        self._write(e, left or here, obs, infos)

    def _write(self, e: int, here: list[int], obs: Mapping[Any, Any], infos: Mapping[Any, Any]) -> None:
        """Fill the rows of environment e; agents not in `here` are gone."""
        rows, self._here[e] = self._rows, here
        rows["alive"][e] = [i in here for i in range(self.spec.n_agents)]
        rows["avail_actions"][e] = self._real_actions
        if len(here) < self.spec.n_agents:
            gone = ~rows["alive"][e]
            rows["obs"][e, gone] = 0
            rows["avail_actions"][e, gone] = np.arange(self.spec.action_dim) == 0
        for i in here:
            agent = self._agents[i]
            if agent not in obs:
                raise ValueError(f"the world gave agent {agent!r} no observation")
            self._slots[e][i][:] = self._encode[i](obs[agent])
            mask = _action_mask(obs[agent], infos.get(agent))
            if mask is not None:
                rows["avail_actions"][e, i, : self.spec.n_actions[i]] = mask
                if not mask.any():
                    raise ValueError(f"the world's action_mask leaves agent {agent!r} no action")
        if self._own_state:
            rows["state"][e] = np.ravel(self._envs[e].state())

    def _step(self) -> Step:
        """The rows as tensors of their own: a step that is kept must not change with the next one."""
        if not self._own_state:
            self._rows["state"][:] = self._rows["obs"][:, self._real_obs]
        return Step(**{name: torch.from_numpy(rows.copy()) for name, rows in self._rows.items()})


def _buffers(spec: EnvSpec) -> dict[str, np.ndarray]:
    """The rows that a step is copied from, by the names of Step's fields."""
    n_envs, n_agents = spec.n_envs, spec.n_agents
    return {
        "obs": np.zeros((n_envs, n_agents, spec.obs_dim), np.float32),
        "state": np.zeros((n_envs, spec.state_dim), np.float32),
        "avail_actions": np.zeros((n_envs, n_agents, spec.action_dim), bool),
        "reward": np.zeros(n_envs, np.float32),
        "terminated": np.zeros(n_envs, bool),
        "truncated": np.zeros(n_envs, bool),
        "alive": np.zeros((n_envs, n_agents), bool),
    }


def _check_parallel(env: ParallelEnv) -> ParallelEnv:
    if hasattr(env, "agent_iter"):
        raise ConfigError(
            f"{env} is a turn-based (AEC) environment; a parallel one is needed: its module's `parallel_env`, "
            "or pettingzoo.utils.aec_to_parallel"
        )
    needed = ("possible_agents", "reset", "step", "observation_space", "action_space")
    missing = [name for name in needed if not hasattr(env, name)]
    if missing:
        raise ConfigError(f"{env!r} is no PettingZoo parallel environment: it lacks {', '.join(missing)}")
    if not env.possible_agents:
        raise ConfigError(f"{env} has no agents")
    return env


def _encoder(agent: object, space: Any) -> tuple[int, Callable[[Any], np.ndarray]]:
    """Size of an agent's flat observation, and the function that makes it."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces and "observation" in space.spaces:
        size, encode = _encoder(agent, space.spaces["observation"])
        return size, lambda obs: encode(obs["observation"])
    if isinstance(space, spaces.Box) and len(space.shape) == 1:  # most worlds: nothing to do
        return space.shape[0], lambda obs: obs
    if space.is_np_flattenable:
        return spaces.flatdim(space), lambda obs: np.asarray(spaces.flatten(space, obs))
    raise ConfigError(f"agent {agent!r}: an observation space {space} cannot be flattened (allowed: Box, Discrete)")


def _discrete(agent: object, space: Any) -> Any:
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return space
    hint = "; for an mpe2 world leave continuous_actions=False" if isinstance(space, spaces.Box) else ""
    raise ConfigError(f"agent {agent!r}: action space {space} is not supported (allowed: Discrete){hint}")


def _action_mask(obs: Any, info: Any) -> np.ndarray | None:
    for source in (obs, info):
        if isinstance(source, dict) and "action_mask" in source:
            return np.asarray(source["action_mask"], dtype=bool)
    return None


def _episode_limit(env: ParallelEnv, given: int | None) -> int:
    """The given limit, or the one that the world names; in env steps."""
    holders = (env, getattr(env, "unwrapped", env))
    named = [getattr(holder, name, None) for holder in holders for name in LIMIT_ATTRIBUTES]
    limit = given if given is not None else next((value for value in named if value is not None), None)
    if limit is None:
        raise ConfigError(
            f"{env} names no episode limit (looked for {', '.join(LIMIT_ATTRIBUTES)}): set the option episode_limit"
        )
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"episode limit {limit!r} of {env}: must be a whole number of env steps, at least 1")
    return limit


def _own_state_dim(env: ParallelEnv) -> int | None:
    """Size of what `state()` returns; None where the world has none."""
    if not callable(getattr(env, "state", None)):
        return None
    env.reset(seed=0)
    try:
        state = np.asarray(env.state())
    except NotImplementedError:
        return None
    if state.dtype.kind not in "biuf" or state.size == 0:
        raise ConfigError(f"{env}: state() must return an array of numbers, not one of {state.dtype}")
    return state.size


@dataclass(frozen=True)
class Builder:
    """Builds a PettingZooEnv; what it builds from is imported only when it or its signature is asked for."""

    task: str
    load: Callable[[], tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]]  # factory and its options

    @property
    def __signature__(self) -> inspect.Signature:
        """`n_envs` and the options of the world, so that an unknown option can be named."""
        n_envs = inspect.Parameter("n_envs", inspect.Parameter.KEYWORD_ONLY)
        return inspect.Signature([n_envs, *self.load()[1]])

    def __call__(self, n_envs: int, **options: Any) -> PettingZooEnv:
        """Build the worlds.

        Raises:
            ConfigError: an option that the world refuses, or a world that PettingZooEnv refuses.
        """
        factory, parameters = self.load()
        episode_limit = options.pop("episode_limit", None) if EPISODE_LIMIT in parameters else None

        def make() -> ParallelEnv:
            try:
                return factory(**options)
            except (TypeError, ValueError, AssertionError) as error:
                raise ConfigError(f"task {self.task!r} refuses the options {options}: {error}") from error

        return PettingZooEnv(make, n_envs, episode_limit)


def mpe2_builder(name: str) -> Builder:
    """The builder of a task of mpe2, with the options of its world (`N`, `max_cycles`, ...)."""
    if name not in MPE2_TASKS:
        raise ConfigError(unknown("mpe2 task", name, MPE2_TASKS))
    return Builder(f"mpe2/{name}", partial(_load_mpe2, name))


def _load_mpe2(name: str) -> tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]:
    module_name, script = MPE2_TASKS[name]
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # or pygame greets on standard output
    try:
        raw_env = importlib.import_module(f"mpe2.{module_name}").raw_env
    except ImportError as error:
        raise ConfigError(f"task 'mpe2/{name}' needs mpe2 ({error}): pip install 'mpe2>=1.1'") from error
    options = [option for option in _options(raw_env) if option.name not in SCREEN_OPTIONS]
    return lambda **kwargs: Mpe2World(raw_env(**kwargs), script), options


def import_builder(path: str) -> Builder:
    """The builder of a foreign world: a module with `parallel_env`, `module.factory` or `module:factory`.

    Its options are those of the factory and `episode_limit` (env steps), which is required if the world
    does not name its own in one of LIMIT_ATTRIBUTES.

    Raises:
        ConfigError: nothing can be imported from `path`, or it is no factory of parallel environments.
    """
    found = _locate(path)
    factory = getattr(found, "parallel_env", None) if inspect.ismodule(found) else found
    if factory is None:
        raise ConfigError(f"task 'pettingzoo/{path}': module {found.__name__!r} has no parallel_env")
    if not callable(factory):
        raise ConfigError(f"task 'pettingzoo/{path}': {factory!r} is no function or class that builds a world")
    options = [option for option in _options(factory) if option.name not in ("n_envs", "episode_limit")]
    return Builder(f"pettingzoo/{path}", lambda: (factory, [EPISODE_LIMIT, *options]))


def _locate(path: str) -> Any:
    """The module, or the attribute of a module, that a path names."""
    module_name, _, attribute = path.partition(":")
    try:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            parent, _, last = module_name.rpartition(".")
            if attribute or not parent or error.name != module_name:  # the last: a package that it needs is missing
                raise
            module, attribute = importlib.import_module(parent), last
        return getattr(module, attribute) if attribute else module
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"task 'pettingzoo/{path}': cannot import {path!r}: {error}") from error


def _options(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    """What can be given to a factory by name."""
    kinds = inspect.Parameter
    parameters = list(inspect.signature(factory).parameters.values())
    by_name = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    named = [p.replace(kind=kinds.KEYWORD_ONLY) for p in parameters if p.kind in by_name]
    return named + [p for p in parameters if p.kind is kinds.VAR_KEYWORD]
