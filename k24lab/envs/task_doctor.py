"""`k24lab doctor --task`: random episodes of a task, and what its environment does that it should not.

What an environment must do is written down in `k24lab.envs.pettingzoo.PettingZooEnv` for those of PettingZoo, and in
`k24lab.envs.base` (Step, VecEnv) for all. A run refuses what it cannot go on with, at every reset and step. Here whole
episodes are played, each of them twice, and what a run lets pass is looked at too.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from k24lab.envs.base import Step, VecEnv
from k24lab.envs.pettingzoo import PettingZooEnv, call
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError, RunError, warn

API_CYCLES = 100  # env steps of PettingZoo's own test, for each of its two resets
MOST_STEPS = 10_000  # of an episode: more are not needed to see what an environment does
CANCEL = "the rewards of the agents sum to 0 at every step: a team, which gets the sum, learns nothing from opponents"
MASK_WORDS = ("avail", "legal", "mask", "valid")  # in the names that others give to an action mask

Problems = dict[str, str]  # what should not be -> where it was seen first


def examine_task(task: str, episodes: int = 5) -> int:
    """Play `episodes` random episodes of a task twice, and print what was found.

    Returns:
        Exit code: 1 if there is a problem, else 0.

    Raises:
        ConfigError: the task cannot be built, or `episodes` is below 1.
    """
    lines, problems = examine(task, episodes)
    found = [f"    - {text}" + (f" (first in {place})" if place else "") for text, place in problems.items()]
    print("\n".join([task, *lines, *(["  problems", *found] if found else ["  no problems"])]))
    return int(bool(problems))


def examine(task: str, episodes: int) -> tuple[list[str], Problems]:
    """Sizes and lengths, and what the environment of a task does wrong in random episodes or PettingZoo's own test."""
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes} must be at least 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages, about their own future
        return _examine(task, episodes)


def _examine(task: str, episodes: int) -> tuple[list[str], Problems]:
    problems: Problems = {}
    env = make_env(task, 1)
    single = env.envs[0] if isinstance(env, SerialVector) else None
    spec, names = env.spec, list(single.agents) if single else [str(i) for i in range(env.spec.n_agents)]
    try:
        played = [steps for k in range(episodes) if (steps := _play_twice(env, k, names, problems))]
        if any(bool(step.reward) for steps in played for step in steps):
            problems.pop(CANCEL, None)
        if isinstance(single, PettingZooEnv):
            _look_for_masks(single, problems)
    finally:
        env.close()
    if task.startswith("pettingzoo/"):
        _api_test(task, problems)
    lines = [
        f"  agents    {spec.n_agents}: {', '.join(names)}",
        f"  observed  numbers: {_alike(spec.obs_dims)}; state: {spec.state_dim}" + _pictures(single),
        f"  actions   {_alike(spec.n_actions)}",
        f"  limit     {spec.episode_limit} env steps",
    ]
    if played:
        lengths, ended = [len(steps) - 1 for steps in played], sum(bool(steps[-1].terminated) for steps in played)
        returns = [sum(float(step.reward) for step in steps[1:]) for steps in played]
        ends = f"{ended} terminated, {len(played) - ended} truncated"
        lines.append(f"  played    {len(played)} random episodes of {_range(lengths)} env steps; {ends}")
        lines.append(f"  returns   {_range(returns)}")
    return lines, problems


def _play_twice(env: VecEnv, seed: int, names: Sequence[str], problems: Problems) -> list[Step]:
    """The steps of an episode; the same seed and actions must give the same once more. Empty after an error."""
    try:
        steps = _play(env, seed, names, problems)
        if said := _difference(steps, _play(env, seed, names, {}), names):
            text = "the same seed and actions do not give the same episode"
            problems.setdefault(text, f"episode {seed}: {said}")
        return steps
    except RunError as error:
        problems.setdefault(str(error).removeprefix("environment 0: "), f"episode {seed}")
        return []


def _play(env: VecEnv, seed: int, names: Sequence[str], problems: Problems) -> list[Step]:
    """Every step of an episode with random available actions; what is wrong in one is noted."""
    generator, steps = torch.Generator().manual_seed(seed), [env.reset(seed)]
    _look_at_step(env, steps[0], f"episode {seed}, step 0", names, problems)
    while not bool(steps[-1].terminated | steps[-1].truncated) and len(steps) <= MOST_STEPS:
        weights = steps[-1].avail_actions.flatten(0, 1).float().cpu()
        chosen = torch.multinomial(weights, 1, generator=generator).view(1, -1)
        steps.append(env.step(chosen.to(steps[-1].obs.device)))
        _look_at_step(env, steps[-1], f"episode {seed}, step {len(steps) - 1}", names, problems)
    return steps


def _look_at_step(env: VecEnv, now: Step, place: str, names: Sequence[str], problems: Problems) -> None:
    """Numbers that are none or out of bounds, and agents that come back."""
    for name in ("obs", "state", "reward"):
        value = getattr(now, name)[0]
        if (bad := ~value.isfinite()).any():
            who = f" of agent {names[int(bad.nonzero()[0][0])]!r}" if name == "obs" else ""
            problems.setdefault(f"{name}{who} is {value[bad].flatten()[0].item()}", place)
    single = env.envs[0] if isinstance(env, SerialVector) else None
    if not isinstance(single, PettingZooEnv):
        return
    if any(single.rewards.values()) and not bool(now.reward):
        problems.setdefault(CANCEL, place)
    for agent, end in single.dead.items():
        if end < single.t and agent in single.env.agents:
            said = f"agent {agent!r} is in agents after its end; it stays dead until the next reset"
            problems.setdefault(said, f"{place}: it ended at step {end}")
    for i, agent in enumerate(single.env.possible_agents):
        if now.alive is not None and now.alive[0, i]:
            _look_at_bounds(agent, now.obs[0, i].numpy(), single.env.observation_space(agent), place, problems)


def _look_at_bounds(agent: Any, seen: np.ndarray, space: Any, place: str, problems: Problems) -> None:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict) and {"observation", "action_mask"} <= space.spaces.keys():
        space = space["observation"]
    flat: Any = spaces.flatten_space(space)
    low, high = (bound.ravel().astype(np.float32) for bound in (flat.low, flat.high))
    seen = seen[: len(low)]
    if (bad := (seen < low) | (seen > high)).any():
        said = f"{seen[bad][0]:.4g}, declared are {low[bad][0]:g} to {high[bad][0]:g}"
        problems.setdefault(f"observations of agent {agent!r} are outside of their space", f"{place}: {said}")


def _look_for_masks(single: PettingZooEnv, problems: Problems) -> None:
    """What looks like a mask of actions, under a name that the adapter does not know."""
    for part, holders in zip(("observation", "info"), call("reset(seed=0)", single.env.reset, seed=0), strict=True):
        for agent, holder in holders.items():
            n_actions = int(single.env.action_space(agent).n)
            for key, value in holder.items() if isinstance(holder, Mapping) and "action_mask" not in holder else ():
                if any(word in str(key).lower() for word in MASK_WORDS) and np.shape(value) == (n_actions,):
                    said = f"the {part} of agent {agent!r} has {key!r}, which looks like a mask of its actions"
                    problems[f"{said}: nobody reads it, the name is 'action_mask'"] = ""


def _pictures(single: Any) -> str:
    """What becomes of observations that are pictures; nothing for others."""
    one = isinstance(single, PettingZooEnv)
    space: Any = single.env.observation_space(single.env.possible_agents[0]) if one else None
    if getattr(space, "dtype", None) != np.uint8 or len(space.shape) < 2:
        return ""
    return f"; these are pictures {space.shape}, flattened as they are: there are no convolutions"


def _difference(first: list[Step], second: list[Step], agents: Sequence[str]) -> str:
    """Where two episodes differ first; nothing if they do not."""
    for t, (a, b) in enumerate(zip(first, second, strict=False)):
        for f in fields(Step):
            x, y = getattr(a, f.name), getattr(b, f.name)
            if isinstance(x, Tensor) and not torch.equal(x.nan_to_num(), y.nan_to_num()):
                per_agent = f.name in ("obs", "avail_actions", "alive")
                who = f" of agent {agents[int((x != y)[0].nonzero()[0][0])]!r}" if per_agent else ""
                return f"{f.name}{who} differs from step {t} on"
    return "" if len(first) == len(second) else f"they end after {len(first) - 1} and {len(second) - 1} env steps"


def _api_test(task: str, problems: Problems) -> None:
    """PettingZoo's own test of parallel environments, on an environment of its own."""
    if importlib.util.find_spec("pettingzoo") is None:  # the environment does without it
        return
    import pettingzoo
    from pettingzoo.test import parallel_api_test

    vector: Any = make_env(task, 1)
    env = vector.envs[0].env
    try:
        if isinstance(env, pettingzoo.ParallelEnv):
            # The test ends where spaces are not the same objects at each call, which we do not need.
            env.observation_space, env.action_space = cache(env.observation_space), cache(env.action_space)
            with contextlib.redirect_stdout(io.StringIO()):
                call("PettingZoo's parallel_api_test", parallel_api_test, env, num_cycles=API_CYCLES)
    except RunError as error:
        problems[str(error)] = ""
    finally:
        vector.close()


def check_repeatable(task: str) -> None:
    """Warn of a task whose environment does not begin alike after two resets with one seed."""
    env = make_env(task, 1)
    try:
        with contextlib.suppress(RunError):  # the run itself will meet it, and keep it in its folder
            first, second = env.reset(0), env.reset(0)
            agents = [str(i) for i in range(env.spec.n_agents)]
            if said := _difference([first], [second], agents).removesuffix(" from step 0 on"):
                warn(f"task {task!r}: two resets with one seed are not alike ({said}): no run of it can be repeated")
    finally:
        env.close()


def _range(values: Sequence[int] | Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _alike(sizes: tuple[int, ...]) -> str:
    return f"{sizes[0]} for each agent" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))
