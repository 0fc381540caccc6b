"""Any PettingZoo parallel environment, and the tasks of mpe2."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from k24lab.envs.base import NO_SCENE, EnvSpec, VecEnv
from k24lab.envs.scenes import mpe_action, mpe_scene
from k24lab.envs.scripted import PREY, Mpe2World
from k24lab.envs.vector import Row, SingleEnv, lift
from k24lab.errors import ConfigError, unknown
from k24lab.scene import Scene

ParallelEnv = Any  # pettingzoo.ParallelEnv, or any class with its methods: the package is imported only when used

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "max_episode_steps", "episode_limit")
EPISODE_LIMIT = inspect.Parameter("episode_limit", inspect.Parameter.KEYWORD_ONLY, default=None)
SCREEN_OPTIONS = {"render_mode", "dynamic_rescaling", "benchmark_data"}  # of mpe2: they change nothing in an episode

MPE2_TASKS: dict[str, tuple[str, bool]] = {  # name -> module of mpe2, whether it has prey that a script plays
    "collect_treasure": ("collect_treasure_v1", False),
    "simple_formation": ("simple_formation_v1", False),
    "simple_line": ("simple_line_v1", False),
    "simple_reference": ("simple_reference_v3", False),
    "simple_speaker_listener": ("simple_speaker_listener_v4", False),
    "simple_spread": ("simple_spread_v3", False),
    "simple_tag": ("simple_tag_v3", True),
    "simple_world_comm": ("simple_world_comm_v3", True),
}


class PettingZooWorld(SingleEnv):
    """One parallel environment.

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
    """

    def __init__(self, env: ParallelEnv, episode_limit: int | None = None):
        """Take a world; `episode_limit` (env steps) may be left out if it names its own.

        Raises:
            ConfigError: not a parallel environment, an observation or action space that cannot be batched,
                no episode limit, or a `state()` that is no array.
        """
        self._env = _check_parallel(env)
        self._names = list(env.possible_agents)
        self.agents = [str(name) for name in self._names]
        encoders = [_encoder(agent, env.observation_space(agent)) for agent in self._names]
        spaces = [_discrete(agent, env.action_space(agent)) for agent in self._names]
        self._encode = [encode for _, encode in encoders]
        self._first_action = [int(space.start) for space in spaces]
        obs_dims = tuple(size for size, _ in encoders)
        state_dim = _own_state_dim(env)
        self._own_state = state_dim is not None
        self.spec = EnvSpec(
            n_envs=1,
            n_agents=len(self._names),
            obs_dims=obs_dims,
            n_actions=tuple(int(space.n) for space in spaces),
            state_dim=sum(obs_dims) if state_dim is None else state_dim,
            episode_limit=_episode_limit(env, episode_limit),
        )
        self._real_obs = np.arange(self.spec.obs_dim) < np.array(obs_dims)[:, None]  # [N, O]: not padding
        self._real_actions = np.arange(self.spec.action_dim) < np.array(self.spec.n_actions)[:, None]  # [N, A]
        self._obs = np.zeros((self.spec.n_agents, self.spec.obs_dim), np.float32)
        self._slots = [row[:size] for row, size in zip(self._obs, obs_dims, strict=True)]
        self._t = 0
        self._here: list[int] = []  # agents that act next (or acted last)

    def reset(self, seed: int) -> Row:
        """Start an episode, the same for the same seed, whatever was played before."""
        self._t = 0
        obs, infos = self._env.reset(seed=seed)
        return self._row([i for i, agent in enumerate(self._names) if agent in self._env.agents], obs, infos)

    def step(self, actions: Int[np.ndarray, " N"]) -> Row:
        """One step of all agents that are left."""
        here, chosen = self._here, actions.tolist()
        sent = {self._names[i]: chosen[i] + self._first_action[i] for i in here}
        obs, reward, terminated, truncated, infos = self._env.step(sent)
        self._t += 1
        gone = {agent for agent in sent if terminated.get(agent) or truncated.get(agent)}
        left = [i for i, agent in enumerate(self._names) if agent in self._env.agents and agent not in gone]
        out_of_time = any(truncated.get(agent) and not terminated.get(agent) for agent in sent)
        return self._row(
            left or here,
            obs,
            infos,
            reward=float(sum(reward.values())),
            terminated=not left and not out_of_time,
            truncated=self._t >= self.spec.episode_limit if left else out_of_time,
        )

    def scene(self) -> Scene:
        """The things of a world of mpe2; the picture that another one draws of itself.

        Raises:
            ConfigError: it draws none.
        """
        if (world := _mpe_world(self._env)) is not None:
            return mpe_scene(world, self.agents)
        if getattr(self._env, "render_mode", None) != "rgb_array":
            raise ConfigError(f"{self._env} {NO_SCENE}")
        return Scene((), picture=np.ascontiguousarray(self._env.render(), dtype=np.uint8))

    def action_name(self, agent: int, action: int) -> str:
        """Move and word in a world of mpe2, else the number that the world knows."""
        if (world := _mpe_world(self._env)) is None:
            return str(action + self._first_action[agent])
        return mpe_action(next(a for a in world.agents if a.name == self.agents[agent]), action)

    def close(self) -> None:
        """Close the world."""
        self._env.close()

    def _row(self, here: list[int], obs: Mapping[Any, Any], infos: Mapping[Any, Any], **rest: Any) -> Row:
        """What the world says; agents not in `here` are gone."""
        self._here = here
        avail_actions, alive = self._real_actions, np.ones(self.spec.n_agents, bool)
        if len(here) < self.spec.n_agents:
            alive[:] = [i in here for i in range(self.spec.n_agents)]
            self._obs[~alive] = 0
            avail_actions = np.where(alive[:, None], avail_actions, np.arange(self.spec.action_dim) == 0)
        for i in here:
            agent = self._names[i]
            if agent not in obs:
                raise ValueError(f"the world gave agent {agent!r} no observation")
            self._slots[i][:] = self._encode[i](obs[agent])
            mask = _action_mask(obs[agent], infos.get(agent))
            if mask is not None:
                if not mask.any():
                    raise ValueError(f"the world's action_mask leaves agent {agent!r} no action")
                if avail_actions is self._real_actions:
                    avail_actions = avail_actions.copy()
                avail_actions[i, : self.spec.n_actions[i]] = mask
        state = np.ravel(self._env.state()).astype(np.float32) if self._own_state else self._obs[self._real_obs]
        return Row(obs=self._obs, state=state, avail_actions=avail_actions, alive=alive, **rest)


def _mpe_world(env: ParallelEnv) -> Any:
    """The world of an environment of mpe2, whichever way it is wrapped; None of any other."""
    world = getattr(getattr(env, "unwrapped", env), "world", None)
    return world if hasattr(world, "agents") and hasattr(world, "landmarks") else None


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
    """Builds PettingZooWorlds; what it builds from is imported only when it or its signature is asked for."""

    task: str
    load: Callable[[], tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]]  # factory and its options

    @property
    def __signature__(self) -> inspect.Signature:
        """`n_envs`, `workers` and the options of the world, so that an unknown option can be named."""
        sizes = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("n_envs", "workers")]
        return inspect.Signature([*sizes, *self.load()[1]])

    def __call__(self, n_envs: int, workers: int = 0, **options: Any) -> VecEnv:
        """Build the worlds, in this process or in `workers` others.

        Raises:
            ConfigError: an option that the world refuses, or a world that PettingZooWorld refuses.
        """
        return lift(partial(self.world, options), n_envs, workers)

    def world(self, options: Mapping[str, Any]) -> PettingZooWorld:
        """Build one."""
        factory, parameters = self.load()
        own = dict(options)
        episode_limit = own.pop("episode_limit", None) if EPISODE_LIMIT in parameters else None
        try:
            env = factory(**own)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"task {self.task!r} refuses the options {own}: {error}") from error
        return PettingZooWorld(env, episode_limit)


def mpe2_builder(name: str) -> Builder:
    """The builder of a task of mpe2, with the options of its world (`N`, `max_cycles`, ...)."""
    if name not in MPE2_TASKS:
        raise ConfigError(unknown("mpe2 task", name, MPE2_TASKS))
    return Builder(f"mpe2/{name}", partial(_load_mpe2, name))


def _load_mpe2(name: str) -> tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]:
    module_name, has_prey = MPE2_TASKS[name]
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # or pygame greets on standard output
    try:
        raw_env = importlib.import_module(f"mpe2.{module_name}").raw_env
    except ImportError as error:
        raise ConfigError(f"task 'mpe2/{name}' needs mpe2 ({error}): pip install 'mpe2>=1.1'") from error
    options = [option for option in _options(raw_env) if option.name not in SCREEN_OPTIONS]
    if has_prey:
        options.append(inspect.Parameter("prey", inspect.Parameter.KEYWORD_ONLY, default="flee"))
    return partial(_mpe2_world, raw_env, has_prey), options


def _mpe2_world(raw_env: Callable[..., Any], has_prey: bool, prey: str = "flee", **options: Any) -> ParallelEnv:
    if prey not in PREY:
        raise ConfigError(unknown("prey", prey, PREY))
    return Mpe2World(raw_env(**options), PREY[prey] if has_prey else None)


def import_builder(path: str) -> Builder:
    """The builder of a foreign world: a module with `parallel_env`, `module.factory` or `module:factory`.

    Its options are those of the factory and `episode_limit` (env steps), which is required if the world
    does not name its own in one of LIMIT_ATTRIBUTES.

    Raises:
        ConfigError: nothing can be imported from `path`, or it is no factory of parallel environments.
    """
    _factory(path)
    return Builder(f"pettingzoo/{path}", partial(_load_imported, path))


def _factory(path: str) -> Callable[..., ParallelEnv]:
    found = _locate(path)
    factory = getattr(found, "parallel_env", None) if inspect.ismodule(found) else found
    if factory is None:
        raise ConfigError(f"task 'pettingzoo/{path}': module {found.__name__!r} has no parallel_env")
    if not callable(factory):
        raise ConfigError(f"task 'pettingzoo/{path}': {factory!r} is no function or class that builds a world")
    return factory


def _load_imported(path: str) -> tuple[Callable[..., ParallelEnv], list[inspect.Parameter]]:
    factory = _factory(path)
    options = [option for option in _options(factory) if option.name not in ("n_envs", "workers", "episode_limit")]
    return factory, [EPISODE_LIMIT, *options]


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
