"""Any environment of PettingZoo, parallel or AEC, as a `SingleEnv`, with all that it returns checked."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from k24lab.envs.aec import to_parallel
from k24lab.envs.base import NO_SCENE, EnvSpec
from k24lab.envs.pettingzoo_spaces import KEYED, NUMBERS, Unfit, action_mask, brief, discrete, encoder
from k24lab.envs.scene import Scene, mpe_action, mpe_scene
from k24lab.envs.single_env import Row, SingleEnv
from k24lab.errors import ConfigError, RunError, told

ParallelEnv = Any  # pettingzoo.ParallelEnv, or any class with its methods: the package is imported only when used

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "max_episode_steps", "episode_limit")
LARGEST_SEED = 2**32 - 1  # that a vector gives to an environment
SMALL_SEEDS = 2**31  # how many seeds an environment has that takes signed 32-bit integers only
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def call(what: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What `function` returns; a RunError if it raised anything but KeyboardInterrupt. `what` says what was called."""
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: an environment does not decide that a run has succeeded
        raise RunError(f"{what} raised {told(error)}") from error


class PettingZooEnv(SingleEnv):
    """One environment. This is the contract: what it must do as a parallel one, and what is made of what it returns.

    An AEC environment is converted by PettingZoo: by `aec_to_parallel` if its metadata say `is_parallelizable`, else by
    `turn_based_aec_to_parallel`. In the second case an env step is the move of one agent, and all others wait.

    What breaks the contract is a ConfigError when the environment is built, or a RunError at the reset or step where
    it shows; both name the agent, the step, the value, and what is allowed. `k24lab doctor --task` plays whole
    episodes and names more: seeds that are ignored, agents that come back, numbers out of bounds.

    - **Agents.** `possible_agents` never changes. `agents` holds those that act next; it may be a part of
      `possible_agents`, in any order, and an agent may arrive late. An agent that acted and was reported terminated
      or truncated, or that has left `agents`, is dead until the next reset, also if it stays in `agents` or
      returns: alive is False, its observation zero, its only available action 0, and it is sent no action. Flags of
      agents that did not act in the step, such as those that have yet to arrive, mean nothing.
    - **Reset.** `reset(seed=...)` returns observations and infos, and is the only source of randomness: the same seed
      and actions give the same episode. Seeds are below 2**32. An environment that cannot be reset with the largest
      of them but with a small one gets all seeds modulo 2**31.
    - **Step.** `step(actions)` returns five dictionaries by agent: observations, rewards, terminated, truncated, infos.
      Rewards have no other keys than possible agents. The others may have more, which nobody reads.
    - **Spaces** have the same sizes and starts after every reset; bounds of a Box may change.
    - **Observations** have the shape that their space declares (Box, MultiBinary, Discrete, MultiDiscrete, Dict,
      Tuple), and all but Box ones are in range. They are flattened and padded with zeros. Every agent
      that acted in the last step of an episode must have one, and so must all that act next.
    - **Rewards** are finite numbers, not arrays with axes. The team's reward is their sum, with those of the dead. An
      agent without one gets 0.
    - **Actions** are Discrete. An `action_mask` in the observation or info forbids some of them. An agent whose mask is
      all zeros while others can move, or that waits in a turn-based AEC environment, has action 0 as its only available
      one, and is sent the first action of its space, as `Discrete.sample` of Gymnasium gives it. All zeros for everyone
      are an error, but in the last observation they say nothing, and every action counts as available.
    - **End.** An episode is over when no agent is left. It is truncated if one of the last to leave was truncated and
      not terminated, or if `episode_limit` env steps are over with agents left; else it is terminated.
    - **State.** `state()`, where there is one, is an array of numbers whose size never changes; else the state is all
      observations without the padding.
    """

    # Since the last reset:
    t: int  # env steps
    dead: dict[Any, int]  # names of agents that will not act before the next reset -> their last step
    rewards: Mapping[Any, Any]  # of the last step, by agent
    _here: list[int]  # agents that act next (or acted last)

    def __init__(self, env: ParallelEnv, episode_limit: object = None, named_limit: object = None):
        """Take an environment, and reset it once to see whether that works; ConfigError if the contract is broken.

        Its limit is `episode_limit`, or what it names in one of LIMIT_ATTRIBUTES, or else `named_limit`: the option
        that it was built with.
        """
        env, self._turns = to_parallel(env)
        self.env, self._here = env, []
        self._names = _agents_of(env)
        try:
            actions = [discrete(a, call(f"action_space({a!r})", env.action_space, a)) for a in self._names]
            encoders = [encoder(a, call(f"observation_space({a!r})", env.observation_space, a)) for a in self._names]
            self._sizes = self._ask_sizes()
            self._n_seeds = self._try_reset()
            own_state_dim = self._own_state_dim()
        except RunError as error:  # before a run starts, what an environment does wrong is an error of its task
            raise ConfigError(str(error)) from error
        self.agents = [str(name) for name in self._names]
        self._encode = [encode for _, encode in encoders]
        self._first_action = [int(space.start) for space in actions]
        self._own_state = own_state_dim is not None
        obs_dims = tuple(size for size, _ in encoders)
        if not any(obs_dims):
            raise ConfigError("no agent observes a number: all observation spaces are empty")
        self.spec = EnvSpec(
            n_envs=1,
            n_agents=len(self._names),
            obs_dims=obs_dims,
            n_actions=tuple(int(space.n) for space in actions),
            state_dim=sum(obs_dims) if own_state_dim is None else own_state_dim,
            episode_limit=_episode_limit(env, episode_limit, named_limit, len(self._names) if self._turns else 1),
        )
        # Memory for the observations of a step, and which of its numbers and actions are no padding.
        spec = self.spec
        self._real_obs = np.arange(spec.obs_dim) < np.array(spec.obs_dims)[:, None]  # [N, O]
        self._real_actions = np.arange(spec.action_dim) < np.array(spec.n_actions)[:, None]  # [N, A]
        self._obs = np.zeros((spec.n_agents, spec.obs_dim), np.float32)

    def reset(self, seed: int) -> Row:
        """Start an episode, the same for the same seed, whatever was played before. RunError: a broken contract."""
        obs, infos = self._ask_reset(seed % self._n_seeds)
        return self._row(self._left(), obs, infos)

    def step(self, actions: Int[np.ndarray, " N"]) -> Row:
        """One step of all agents that are left. Raises RunError: the environment breaks the contract."""
        here, chosen = self._here, actions.tolist()
        acted = [self._names[i] for i in here]
        sent = {self._names[i]: chosen[i] + self._first_action[i] for i in here}
        self.t += 1
        names = ("observations", "rewards", "terminated", "truncated", "infos")
        answer = self._dictionaries(names, f"step {self.t}", call(f"step {self.t}", self.env.step, sent))
        obs, rewards, terminated, truncated, infos = answer
        self.rewards = rewards
        terminations = self._flagged("terminated", terminated, acted)
        truncations = self._flagged("truncated", truncated, acted)
        self.dead.update(dict.fromkeys(terminations | truncations, self.t))
        left = self._left()
        out_of_time = bool(truncations - terminations)
        return self._row(
            left or here,
            obs,
            infos,
            reward=sum([self._number(agent, reward) for agent, reward in rewards.items()], 0.0),
            terminated=not left and not out_of_time,
            truncated=self.t >= self.spec.episode_limit if left else out_of_time,
        )

    def scene(self) -> Scene:
        """The things in an environment of mpe2; the picture that another one draws of itself.

        Raises:
            ConfigError: it draws none.
        """
        if (world := _mpe_world(self.env)) is not None:
            return mpe_scene(world, self.agents)
        if getattr(self.env, "render_mode", None) != "rgb_array":
            raise ConfigError(f"{self.env} {NO_SCENE}")
        return Scene((), picture=np.ascontiguousarray(self.env.render(), dtype=np.uint8))

    def action_name(self, agent: int, action: int) -> str:
        """Move and word in an environment of mpe2, else the number that the environment knows."""
        if (world := _mpe_world(self.env)) is None:
            return str(action + self._first_action[agent])
        return mpe_action(next(a for a in world.agents if a.name == self.agents[agent]), action)

    def close(self) -> None:
        """Close the environment, if that is something to be done."""
        if hasattr(self.env, "close"):
            call("close()", self.env.close)

    def _try_reset(self) -> int:
        """How many seeds the environment takes: all that there are, or those of a signed 32-bit integer."""
        try:
            self._ask_reset(LARGEST_SEED)
            return LARGEST_SEED + 1
        except RunError:
            self._ask_reset(0)
            return SMALL_SEEDS

    def _ask_reset(self, seed: int) -> Any:
        self.t, self.dead, self.rewards = 0, {}, {}
        answer = call(f"reset(seed={seed})", self.env.reset, seed=seed)
        answer = self._dictionaries(("observations", "infos"), "reset", answer)
        if (now := list(self.env.possible_agents)) != self._names:
            raise RunError(f"possible_agents must not change: they were {self._names} and are {now} after a reset")
        if (sizes := self._ask_sizes()) != self._sizes:
            raise RunError(f"spaces must not change: their sizes were {self._sizes} and are {sizes} after a reset")
        return answer

    def _ask_sizes(self) -> list[tuple[int, int, int]]:
        """Numbers of the observation, number of actions, and first action of each agent."""
        from gymnasium.spaces import flatdim

        asked = [(self.env.observation_space(agent), self.env.action_space(agent)) for agent in self._names]
        return [(flatdim(seen), int(acted.n), int(acted.start)) for seen, acted in asked]

    def _dictionaries(self, names: tuple[str, ...], asked: str, answer: Any) -> Any:
        """Refuse an answer that is not so many dictionaries by agent."""
        if not isinstance(answer, tuple | list) or len(answer) != len(names):
            raise RunError(f"{asked} must return the dictionaries {', '.join(names)}, not {brief(answer)}")
        for name, values in zip(names, answer, strict=True):
            if not isinstance(values, KEYED):
                raise RunError(f"{name} at step {self.t} must be a dictionary by agent, not {brief(values)}")
        return answer

    def _own_state_dim(self) -> int | None:
        """Size of what `state()` returns after a reset; None where there is none."""
        own = getattr(self.env, "state", None)
        inner = getattr(getattr(self.env, "unwrapped", None), "state", own)  # a wrapper has one, with nothing to ask
        if not (callable(own) and callable(inner)):
            return None
        try:
            return int(self._ask_state().size)
        except RunError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return None
            raise

    def _ask_state(self) -> np.ndarray:
        given = call(f"state() at step {self.t}", self.env.state)
        state = np.asarray(given)
        if state.dtype.kind not in NUMBERS or state.size == 0:
            raise RunError(f"state() must return an array of numbers, not {brief(given)}")
        return state.ravel().astype(np.float32)

    def _left(self) -> list[int]:
        """Agents that act next; whoever acted and is not among `agents` any more is dead from now on."""
        agents = list(self.env.agents)
        if strangers := [agent for agent in agents if agent not in self._names]:
            said = f"agent {strangers[0]!r} at step {self.t} is none of possible_agents"
            raise RunError(f"{said} (allowed: {self._names})")
        if self.t:
            gone = [agent for i in self._here if (agent := self._names[i]) not in agents]
            self.dead = dict.fromkeys(gone, self.t) | self.dead
        return [i for i, agent in enumerate(self._names) if agent in agents and agent not in self.dead]

    def _flagged(self, what: str, flags: Mapping[Any, Any], acted: Collection[Any]) -> set[Any]:
        """Agents that acted and whose flag is set."""
        found = set()
        for agent in acted:
            flag = flags.get(agent, False)
            if flag not in (0, 1):
                raise RunError(f"{what} of agent {agent!r} at step {self.t} is {brief(flag)} (allowed: a bool)")
            if flag:
                found.add(agent)
        return found

    def _number(self, agent: Any, reward: Any) -> float:
        """A reward as Python's number: in small types of NumPy a sum could overflow."""
        number = reward if isinstance(reward, float | int) else _scalar(reward)
        if agent not in self._names:
            raise RunError(f"rewards at step {self.t}: key {agent!r} is no possible agent (allowed: {self._names})")
        if number is None or not abs(number) <= LARGEST_FLOAT32:
            allowed = "one finite number in float32"
            raise RunError(f"reward of agent {agent!r} at step {self.t} is {brief(reward)} (allowed: {allowed})")
        return float(number)

    def _row(self, here: list[int], obs: Mapping[Any, Any], infos: Mapping[Any, Any], **rest: Any) -> Row:
        """What the environment returns; agents not in `here` are dead, or not there yet."""
        self._here = here
        avail_actions, alive = self._real_actions, np.ones(self.spec.n_agents, bool)
        if len(here) < self.spec.n_agents:
            alive[:] = [i in here for i in range(self.spec.n_agents)]
            self._obs[~alive] = 0
            avail_actions = np.where(alive[:, None], avail_actions, np.arange(self.spec.action_dim) == 0)
        masks: dict[int, np.ndarray] = {}
        for i in here:
            agent = self._names[i]
            if agent not in obs:
                raise RunError(f"agent {agent!r} at step {self.t} has no observation")
            try:
                self._obs[i, : self.spec.obs_dims[i]] = self._encode[i](obs[agent])
                mask = action_mask(obs[agent], infos.get(agent), self.spec.n_actions[i])
                if self._turns is not None and agent != self._turns.agent_selection:
                    mask = np.zeros(self.spec.n_actions[i], bool)
            except Unfit as error:
                raise RunError(f"agent {agent!r} at step {self.t}: {error}") from None
            if mask is not None:
                masks[i] = mask
        if masks:
            over = rest.get("terminated", False) or rest.get("truncated", False)
            avail_actions = self._masked(avail_actions.copy(), masks, over)
        state = self._ask_state() if self._own_state else self._obs[self._real_obs]
        if state.size != self.spec.state_dim:
            raise RunError(f"state() at step {self.t} has {state.size} numbers, at first it had {self.spec.state_dim}")
        return Row(obs=self._obs, state=state, avail_actions=avail_actions, alive=alive, **rest)

    def _masked(self, avail_actions: np.ndarray, masks: Mapping[int, np.ndarray], over: bool) -> np.ndarray:
        """Available actions [N, A] under the masks of those that have one."""
        if len(masks) == len(self._here) and not any(mask.any() for mask in masks.values()):
            if over:
                return avail_actions
            agent = self._names[min(masks)]
            raise RunError(f"action_mask at step {self.t} leaves agent {agent!r} no action, and no other agent has one")
        for i, mask in masks.items():
            avail_actions[i, : self.spec.n_actions[i]] = mask
            avail_actions[i, 0] |= not mask.any()
        return avail_actions


def _scalar(value: object) -> Any:
    """The number or truth value that a scalar of Python or NumPy, or an array without axes, holds; else None."""
    array = np.asarray(value)
    return array.item() if array.ndim == 0 and array.dtype.kind in NUMBERS else None


def _agents_of(env: ParallelEnv) -> list[Any]:
    """The names of the agents; raises ConfigError for what is no parallel environment or names an agent twice."""
    needed = ("possible_agents", "reset", "step", "observation_space", "action_space")
    if missing := [name for name in needed if not hasattr(env, name)]:
        raise ConfigError(f"{env!r} is no PettingZoo parallel environment: it lacks {', '.join(missing)}")
    names = list(env.possible_agents)
    if not names or len(set(map(str, names))) < len(names):
        raise ConfigError(f"possible_agents of {env} must name at least one agent, and none twice: {names}")
    return names


def _episode_limit(env: ParallelEnv, given: object, named: object, moves: int) -> int:
    """The given limit, the one that the environment names, or that of its options; in env steps.

    Whoever names a limit means rounds: in a turn-based environment each has as many `moves`, which are env steps.
    """
    holders = (env, getattr(env, "unwrapped", env))
    found = [getattr(holder, name, None) for holder in holders for name in LIMIT_ATTRIBUTES]
    limit = next((value for value in (given, *found, named) if value is not None), None)
    if limit is None:
        raise ConfigError(
            f"{env} names no episode limit (looked for {', '.join(LIMIT_ATTRIBUTES)}): set the option episode_limit"
        )
    number = _scalar(limit)  # NumPy's types and 10.0 will do
    if number is None or number % 1:
        raise ConfigError(f"episode limit {brief(limit)} of {env}: must be a whole number of env steps, at least 1")
    return int(number) if given is not None else int(number) * moves


def _mpe_world(env: ParallelEnv) -> Any:
    """The `world` of an environment of mpe2, whichever way it is wrapped; None of any other."""
    world = getattr(getattr(env, "unwrapped", env), "world", None)
    return world if hasattr(world, "agents") and hasattr(world, "landmarks") else None
