"""SMAX of JaxMARL: battles like StarCraft's against a scripted enemy, in jax and without the game."""

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, TaskBuilder, VecEnv, check_actions
from k24lab.envs.scene import Scene, smax_action, smax_scene
from k24lab.errors import ConfigError

SCENARIOS = (
    "3m 8m 25m 2s3z 3s5z 5m_vs_6m 10m_vs_11m 27m_vs_30m 3s5z_vs_3s6z 3s_vs_5z 6h_vs_8z "
    "smacv2_5_units smacv2_10_units smacv2_20_units"
).split()
EPISODE_LIMIT = 100  # env steps, SMAX's own
STOP = 4  # the only action that a dead unit has; 0 to 3 move, 5 + j attacks enemy j

Rows = dict[str, Any]  # arrays of jax [E, ...] by the names of Step's fields


class Smax(VecEnv):
    """E battles of a team of N units against SMAX's scripted enemy (Rutherford et al., 2024, arXiv 2311.10090).

    - Actions: north, east, south, west, stop, then one attack per enemy, available while it is alive and in range.
      Dead units can only stop. Any other action is an error.
    - Observations and state are SMAX's own: a dead unit observes zeros; the state holds every unit, not scaled.
    - Team reward: what SMAX gives to each ally, which is the same for all: the mean over the enemies of the share
      of their full health that they lose, and 1 for the win. A win returns 2, and nothing returns more.
    - Terminated: one side is dead; won if it is the enemy and an ally lives (both may die at once). Truncated:
      `episode_limit` env steps are over with both sides alive. SMAX itself would play one step more than its limit.
    - Unit types are numbered as in `spec.unit_type_names`, the types that an ally of the scenario can have.
    - Environment e plays from the e-th key of the reset's seed, whatever was played before and beside it.

    jax runs on the CPU unless JAX_PLATFORMS or jax's own settings say otherwise. The first reset and step of a scenario
    and a number of environments compile (tens of seconds); later processes start from what is kept in
    JAX_COMPILATION_CACHE_DIR, or else in `k24lab/jax` of the user's cache folder.
    """

    def __init__(self, n_envs: int, scenario: str, episode_limit: int = EPISODE_LIMIT):
        """Build E battles; nothing is compiled yet. Raises ConfigError if JaxMARL is not installed."""
        self._battle = _battle(scenario)
        env, type_names = self._battle.env, self._battle.unit_type_names
        self.spec = EnvSpec(
            n_envs=n_envs,
            n_agents=env.num_allies,
            obs_dims=(env.obs_size,) * env.num_allies,
            n_actions=(env.num_ally_actions,) * env.num_allies,
            state_dim=env.state_size,
            episode_limit=episode_limit,
            n_unit_types=len(type_names),
            unit_type_names=type_names,
            has_win=True,
        )
        self._carry: tuple[Any, Any, Rows] | None = None  # keys, SMAX's states, rows of the last step

    def reset(self, seed: int) -> Step:
        """Start E new battles, each the same for the same seed and actions."""
        keys = np.random.SeedSequence(seed).generate_state(2 * self.spec.n_envs).reshape(-1, 2)
        self._carry = self._battle.begin(keys, self.spec.episode_limit)
        return _step(self._carry[2])

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One env step of every battle that has not ended."""
        if self._carry is None:
            raise ValueError("step before the first reset")
        terminated, truncated, available = (
            torch.from_numpy(np.array(self._carry[2][name])) for name in ("terminated", "truncated", "avail_actions")
        )
        check_actions(actions.cpu(), available, terminated | truncated, self._battle.env.agents)
        chosen = actions.cpu().numpy().astype(np.int32)
        self._carry = self._battle.advance(self._carry, chosen, self.spec.episode_limit)
        return _step(self._carry[2])

    def scene(self, e: int) -> Scene:
        """Units of both sides and their health. Raises ValueError: a call before the first reset."""
        if self._carry is None:
            raise ValueError("scene before the first reset")
        return smax_scene(self._battle.env, self._carry[1], e)

    def action_name(self, agent: int, action: int) -> str:
        """A move, or which enemy is attacked."""
        return smax_action(action)


def _step(rows: Rows) -> Step:
    """Copies: memory shared with jax could be overwritten from either side."""
    copies = {name: torch.from_numpy(np.array(value)) for name, value in rows.items()}
    return Step(**copies | {"unit_type": copies["unit_type"].long()})  # jax has no int64 unless told


@dataclass(frozen=True)
class Battle:
    """A scenario, and its two compiled functions over a batch of battles."""

    env: Any  # JaxMARL's environment
    unit_type_names: tuple[str, ...]
    begin: Callable[..., tuple[Any, Any, Rows]]  # keys [E, 2], episode_limit
    advance: Callable[..., tuple[Any, Any, Rows]]  # what begin returned, actions [E, N], episode_limit


@cache  # two instances of a scenario share what is compiled
def _battle(scenario: str) -> Battle:
    jax, env = _make_jaxmarl(scenario)
    n_types = len(env.unit_type_names)
    types = (
        np.arange(n_types) if env.smacv2_unit_type_generation else np.unique(np.asarray(env.scenario)[: env.num_allies])
    )
    rows = partial(_rows, env, np.searchsorted(types, np.arange(n_types)).astype(np.int32))
    return Battle(
        env=env,
        unit_type_names=tuple(env.unit_type_names[i] for i in types),
        begin=jax.jit(jax.vmap(partial(_begin, env, rows), in_axes=(0, None))),
        advance=jax.jit(jax.vmap(partial(_advance, env, rows), in_axes=(0, 0, None))),
    )


def _begin(env: Any, rows: Callable[..., Rows], key_data: Any, limit: Any) -> tuple[Any, Any, Rows]:
    """The first moment of one battle: key of its later steps, state, rows."""
    import jax

    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")  # whatever jax's default is
    reset_key, key = jax.random.split(key)
    obs, state = env.reset(reset_key)
    return key, _strong(state), rows(obs, state, 0.0, limit)


def _advance(
    env: Any, rows: Callable[..., Rows], carry: tuple[Any, Any, Rows], actions: Any, limit: Any
) -> tuple[Any, Any, Rows]:
    """One env step of one battle; of one that has ended nothing is seen any more but its last rows, without reward."""
    import jax

    key, state, before = carry
    key, step_key = jax.random.split(key)
    # `step` would start a new battle and lose the last observation
    obs, state, reward, _, _ = env.step_env(step_key, state, dict(zip(env.agents, actions, strict=True)))
    after = rows(obs, state, reward[env.agents[0]], limit)
    ended = before["terminated"] | before["truncated"]
    last = before | {"reward": jax.numpy.zeros_like(before["reward"])}
    return key, _strong(state), jax.tree.map(partial(jax.numpy.where, ended), last, after)


def _strong(state: Any) -> Any:
    """The state without jax's weak types: SMAX's after a reset has some, and the second step would compile again."""
    import jax

    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def _rows(env: Any, type_number: np.ndarray, obs: Any, state: Any, reward: Any, limit: Any) -> Rows:
    """What is seen of one battle, by the names of Step's fields."""
    from jax import numpy as jnp

    units, n_agents = state.state, env.num_allies
    allies, enemies = units.unit_alive[:n_agents], units.unit_alive[n_agents:]
    available = env.get_avail_actions(state)
    terminated = ~(allies.any() & enemies.any())
    return {
        "obs": jnp.stack([obs[agent] for agent in env.agents]).astype(jnp.float32),
        "state": obs["world_state"].astype(jnp.float32),
        "avail_actions": jnp.stack([available[agent] for agent in env.agents]).astype(bool),
        "reward": jnp.asarray(reward, jnp.float32),
        "terminated": terminated,
        "truncated": ~terminated & (units.step >= limit),
        "alive": allies,
        "unit_type": jnp.asarray(type_number)[units.unit_types[:n_agents]],
        "won": allies.any() & ~enemies.any(),
    }


def _make_jaxmarl(scenario: str) -> tuple[Any, Any]:
    """The module jax and JaxMARL's environment, with jax set up where the user has not."""
    try:
        import jax

        _configure(jax)
        with _own_streams():
            from jaxmarl import make
            from jaxmarl.environments.smax import map_name_to_scenario
    except ImportError as error:
        raise ConfigError(
            f"task 'smax/{scenario}' needs JaxMARL ({error}): install the extra with pip install 'k24lab[smax]'"
        ) from error
    return jax, make("HeuristicEnemySMAX", scenario=map_name_to_scenario(scenario))


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """JaxMARL's import reports about other packages, and sets sys.stdout and stderr back to the interpreter's first
    ones: a notebook would show nothing any more."""
    before = sys.stdout, sys.stderr, sys.__stdout__
    try:
        sys.__stdout__ = sys.stdout = io.StringIO()  # type: ignore[misc, assignment]
        yield
    finally:
        sys.stdout, sys.stderr, sys.__stdout__ = before  # type: ignore[misc]


def _configure(jax: Any) -> None:
    """CPU, because a GPU of jax's would reserve most of its memory; and a folder for what is compiled."""
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "k24lab" / "jax"))


def smax_builder(scenario: str) -> TaskBuilder:
    """What builds the battles of one scenario, with the options that a task may set."""
    parameters = {key: p for key, p in inspect.signature(Smax).parameters.items() if key != "scenario"}
    return TaskBuilder(partial(Smax, scenario=scenario), parameters)
