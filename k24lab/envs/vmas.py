"""The cooperative scenarios of VMAS (Bettini et al. 2022), which steps all environments at once in PyTorch."""

import ast
import functools
import importlib
import inspect
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, TaskBuilder, VecEnv, check_actions
from k24lab.envs.global_random import PrivateRandomState, seed_everything
from k24lab.envs.scene import Scene, vmas_action, vmas_scene
from k24lab.errors import ConfigError

Scenario = Any  # vmas.simulator.scenario.BaseScenario: the package is imported only when used

EPISODE_LIMIT = 100  # env steps, as in the literature on these scenarios

_SCENARIOS = (  # those with a team of one side, whose only actions are moves
    "asym_joint balance ball_passage ball_trajectory buzz_wire discovery dispersion dropout flocking football give_way "
    "het_mass joint_passage joint_passage_size multi_give_way navigation passage reverse_transport road_traffic "
    "sampling simple_spread transport waterfall wheel wind_flocking"
).split()
_DIFFERENT_DEFAULTS: dict[str, dict[str, object]] = {
    "dispersion": {"share_reward": True},  # the return is the number of pieces of food found
    # Every agent sees all goals in one order and never learns which is its own: identity is provably needed.
    "navigation": {"n_agents": 3, "observe_all_goals": True, "collisions": False},
}
# Scenario -> options that differ from the scenario's own defaults.
VMAS_TASKS = {name: _DIFFERENT_DEFAULTS.get(name, {}) for name in _SCENARIOS}

_OPPONENTS = "is not cooperative: its agents are two sides with opposed rewards, and VMAS scripts neither"


class VmasEnv(VecEnv):
    """E instances of a VMAS scenario with discrete actions, stepped together.

    - Nine actions, each a pair of forces in {0, -max, max}: 0 is none, 1 and 2 are -y and y, 3 and 6 are -x and x.
    - Team reward: the mean over agents, as BenchMARL takes it for VDN and QMIX. So a reward that all agents share
      counts once, and one that is each agent's own is averaged.
    - Terminated: the scenario's own `done`. Truncated: `episode_limit` env steps are over and it is not terminated.
    - Observations are padded with zeros to the largest; state: all agents' observations without the padding.
    - Randomness: an instance draws from generators of its own, and leaves those of torch, numpy and Python as it
      found them.
    """

    def __init__(
        self,
        make_scenario: Callable[[], Scenario],
        n_envs: int,
        episode_limit: int = EPISODE_LIMIT,
        device: str = "cpu",
        **options: object,
    ):
        """Build `n_envs` environments with the scenario's `options` on `device`; ConfigError if that cannot be done."""
        self._make_scenario, self._options = make_scenario, options
        self._n_envs, self._limit, self._device = n_envs, episode_limit, device
        self._random = PrivateRandomState()
        self._t = 0  # env steps
        self._last: Step | None = None  # None before the first reset
        try:
            obs = self._start(seed=0)
        except (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            raise ConfigError(f"VMAS refuses the options {options} on {device!r}: {type(e).__name__}: {e}") from e
        _check_agents(self._env.agents, obs)
        self._names = [agent.name for agent in self._env.agents]
        obs_dims = tuple(o.shape[1] for o in obs)
        self.spec = EnvSpec(
            n_envs=n_envs,
            n_agents=len(obs),
            obs_dims=obs_dims,
            n_actions=tuple(int(space.n) for space in self._env.action_space),
            state_dim=sum(obs_dims),
            episode_limit=episode_limit,
        )
        n_actions = torch.tensor(self.spec.n_actions, device=self._device)
        legal = torch.arange(self.spec.action_dim, device=self._device) < n_actions[:, None]
        self._available = legal.expand(n_envs, -1, -1).clone()

    def reset(self, seed: int) -> Step:
        """Start E new episodes, each the same for the same seed, whatever was played before."""
        obs, self._t = self._start(seed), 0
        none = torch.zeros(self._n_envs, device=self._device)
        self._last = self._as_step(obs, none, none > 0)
        return self._last

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One step of all E; environments that have ended ignore their actions."""
        last = self._last
        if last is None:
            raise ValueError("step before the first reset")
        ended = last.terminated | last.truncated
        if ended.all():
            self._last = replace(last, reward=torch.zeros_like(last.reward))
            return self._last
        # A copy, for VMAS reshapes in place; ended environments play on unseen, and must not steer the shared
        # randomness.
        chosen = actions.to(self._device).masked_fill(ended[:, None], 0)
        check_actions(chosen, self._available, ended, self._names)
        with self._random.in_use(), torch.inference_mode():
            obs, rewards, terminated, _ = self._env.step(list(chosen.split(1, dim=1)))
        self._t += 1
        rewards = torch.cat([reward.view(self._n_envs, 1) for reward in rewards], dim=1)  # wheel's are [E, 1], not [E]
        now = self._as_step(obs, rewards.mean(dim=1), terminated.clone())
        self._last = _freeze(now, last, ended) if ended.any() else now
        return self._last

    def scene(self, e: int) -> Scene:
        """Agents, and landmarks that are to be seen."""
        return vmas_scene(self._env.world, self._env.agents, e)

    def action_name(self, agent: int, action: int) -> str:
        """An arrow where the nine actions are forces, else the number."""
        return vmas_action(self._env.agents[agent], self.spec.n_actions[agent], action)

    def _start(self, seed: int) -> list[Any]:
        """Build the environments anew and return their observations, one tensor an agent.

        VMAS's own reset is not enough: wind_flocking keeps its controllers' sums, road_traffic recorded states.
        """
        with self._random.in_use(), torch.inference_mode(), warnings.catch_warnings():
            # VMAS warns once that it finds no free place, and goes on looking for ever.
            warnings.filterwarnings("error", message="It is taking many iterations")
            seed_everything(seed)  # what make_world draws comes before VMAS's own seeding
            try:
                self._env = _environment_class()(
                    self._make_scenario(),
                    num_envs=self._n_envs,
                    device=self._device,
                    continuous_actions=False,
                    seed=seed,
                    **self._options,
                )
            except UserWarning as warning:
                raise ValueError(str(warning)) from warning
            return self._env.get_from_scenario(
                get_observations=True, get_rewards=False, get_infos=False, get_dones=False
            )[0]

    def _as_step(self, obs: list[Any], reward: Float[Tensor, " E"], terminated: Bool[Tensor, " E"]) -> Step:
        """Observations [E, O_i] of each agent as one step, with the time limit."""
        out_of_time = self._t >= self._limit
        state = torch.cat(obs, dim=1)
        if len(set(self.spec.obs_dims)) == 1:
            padded = state.unflatten(1, (self.spec.n_agents, -1))
        else:
            size = self.spec.obs_dim
            padded = torch.stack([torch.nn.functional.pad(o, (0, size - o.shape[1])) for o in obs], dim=1)
        return Step(
            obs=padded,
            state=state,
            avail_actions=self._available,
            reward=reward,
            terminated=terminated,
            truncated=~terminated if out_of_time else torch.zeros_like(terminated),
        )


def _freeze(now: Step, last: Step, ended: Bool[Tensor, " E"]) -> Step:
    """`now`, but rows that had ended before it stay as they were, with zero reward."""
    return replace(
        now,
        obs=torch.where(ended[:, None, None], last.obs, now.obs),
        state=torch.where(ended[:, None], last.state, now.state),
        reward=now.reward.masked_fill(ended, 0),
        terminated=torch.where(ended, last.terminated, now.terminated),
        truncated=torch.where(ended, last.truncated, now.truncated),
    )


def _check_agents(agents: list[Any], obs: list[Any]) -> None:
    """Refuse a scenario without agents, with two sides, or with what cannot be batched."""
    if not agents:
        raise ConfigError("a scenario without agents that act: scripts play all of them")
    if len({bool(agent.adversary) for agent in agents}) > 1:
        raise ConfigError(f"the scenario {_OPPONENTS}")
    if not all(isinstance(seen, Tensor) and seen.dim() == 2 for seen in obs):
        raise ConfigError("an observation is no vector; leave dict_obs=False")


@functools.cache
def _environment_class() -> Any:
    """VMAS's Environment without its decorators, which swap in one random state for all instances of a process.

    What an action does is computed once for all actions, by VMAS, and then looked up: a third of a step's time.
    """
    environment = importlib.import_module("vmas.simulator.environment").Environment
    names = ("__init__", "step", "get_from_scenario")
    own = {name: inspect.unwrap(getattr(environment, name)) for name in names}

    def set_action(self: Any, action: Int[Tensor, "E 1"], agent: Any) -> None:
        if (self.world.dim_c > 0 and not agent.silent) or agent.action.u_noise > 0:  # not the same every time
            environment._set_action(self, action, agent)
            return
        if agent not in self.forces:
            self.forces[agent] = _forces(
                functools.partial(environment._set_action, self, agent=agent), agent, len(action)
            )
        agent.action.u = self.forces[agent][action.squeeze(1)]

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        self.forces = {}  # agent -> [actions, forces]
        own["__init__"](self, *arguments, **options)

    return type("Environment", (environment,), {**own, "__init__": build, "_set_action": set_action})


def _forces(set_action: Callable[[Tensor], None], agent: Any, n_envs: int) -> Float[Tensor, "actions forces"]:
    """What VMAS makes of each action of an agent; as many at a time as there are environments."""
    n, found = math.prod(agent.discrete_action_nvec), []
    for first in range(0, n, n_envs):
        set_action(torch.arange(first, first + n_envs).clamp(max=n - 1).unsqueeze(1))
        found.append(agent.action.u[: n - first])
    return torch.cat(found)


def vmas_builder(name: str) -> TaskBuilder:
    """The builder of one of VMAS_TASKS, with the scenario's options. Raises ConfigError if VMAS is missing."""
    make_scenario, defaults = _load(name)
    defaults = (
        {"n_envs": Parameter.empty, "device": "cpu", "episode_limit": EPISODE_LIMIT} | defaults | VMAS_TASKS[name]
    )

    def build(n_envs: int, **options: Any) -> VmasEnv:
        options = {**VMAS_TASKS[name], **options}
        try:
            if name == "football" and not (options.get("ai_red_agents", True) or options.get("ai_blue_agents")):
                raise ConfigError(f"with ai_red_agents=False it {_OPPONENTS}; set ai_blue_agents=True to play red")
            return VmasEnv(make_scenario, n_envs, **options)
        except ConfigError as error:
            raise ConfigError(f"task 'vmas/{name}': {error}") from error

    return TaskBuilder(build, {key: Parameter(key, Parameter.KEYWORD_ONLY, default=v) for key, v in defaults.items()})


@functools.cache
def _load(name: str) -> tuple[Callable[[], Scenario], dict[str, object]]:
    """A scenario's class, and its options with their defaults: what its source takes from its keyword arguments."""
    try:
        module = importlib.import_module("vmas.scenarios").load(f"{name}.py")
    except ImportError as error:
        raise ConfigError(f"task 'vmas/{name}' needs VMAS ({error}): pip install 'k24lab[vmas]'") from error
    source = Path(module.__file__).read_text()
    found = re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"(?:,\s*([^()]*?),?\s*\))?', source)
    scenario = _with_own_masses(module.Scenario) if name == "het_mass" else module.Scenario
    return scenario, {option: _literal(default) for option, default in found}


def _literal(text: str) -> object:
    """The value of a default in a scenario's source; empty where it is computed from something else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return Parameter.empty


def _with_own_masses(scenario: Any) -> Any:
    """het_mass with masses for each environment; VMAS's own draws one pair for all, so a whole test met one pair."""

    def reset_world_at(self: Scenario, env_index: int | None = None) -> None:
        scenario.reset_world_at(self, env_index)
        for agent, mass in ((self.green_agent, self.green_mass), (self.blue_agent, self.blue_mass)):
            noise = torch.empty(self.world.batch_dim, 1, device=self.world.device)
            agent.mass = mass + noise.uniform_(-self.mass_noise, self.mass_noise)

    return type("Scenario", (scenario,), {"reset_world_at": reset_world_at})
