"""`k24lab doctor --task`: random episodes of a task, and what its environment does that it should not.

What an environment must do is written down in `k24lab.envs.pettingzoo.PettingZooEnv` for those of PettingZoo, and in
`k24lab.envs.base` (Step, VecEnv) for all. A run refuses what it cannot go on with, at every reset and step. Here whole
episodes are played, each of them twice, and what a run lets pass is looked at too.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, VecEnv
from k24lab.envs.pettingzoo import PettingZooEnv, call
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError, RunError, warn

API_CYCLES = 100  # env steps of PettingZoo's own test, for each of its two resets
MOST_SHOWN = 20  # lines of problems, and of notes
MOST_STEPS = 10_000  # of an episode: more are not needed to see what an environment does
MASK_WORDS = ("avail", "legal", "mask", "valid")  # in the names that others give to an action mask


@dataclass
class Findings:
    """What is known of a task after some episodes."""

    spec: EnvSpec
    agents: Sequence[str]
    lengths: list[int] = field(default_factory=list)  # env steps of each episode
    returns: list[float] = field(default_factory=list)
    n_terminated: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)  # what should not be -> places where it was seen
    notes: dict[str, list[str]] = field(default_factory=dict)  # the same of what is allowed, and worth knowing

    def problem(self, text: str, place: str = "") -> None:
        """Something that should not be."""
        self.problems.setdefault(text, []).append(place)

    def note(self, text: str) -> None:
        """Something that is allowed."""
        self.notes.setdefault(text, []).append("")


def examine_task(task: str, episodes: int = 5) -> int:
    """Play `episodes` random episodes of a task twice, and print what was found.

    Returns:
        Exit code: 1 if there is a problem, else 0.

    Raises:
        ConfigError: the task cannot be built, or `episodes` is below 1.
    """
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes} must be at least 1")
    found = examine(task, episodes)
    print(report(task, found))
    return int(bool(found.problems))


def examine(task: str, episodes: int) -> Findings:
    """What the environment of a task does in random episodes, and what PettingZoo's own test says of it.

    Raises:
        ConfigError: the task cannot be built.
    """
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # of packages, about their own future
        env = make_env(task, 1)
        single = env.envs[0] if isinstance(env, SerialVector) else None
        found = Findings(env.spec, single.agents if single else [str(i) for i in range(env.spec.n_agents)])
        try:
            _play_all(env, episodes, found)
            if isinstance(single, PettingZooEnv):
                _look_for_masks(single, found)
        finally:
            env.close()
        if task.startswith("pettingzoo/"):
            _api_test(task, found)
    for warning in given:
        text = " ".join(str(warning.message).split())
        (found.problem if "could not be closed" in text else found.note)(text)
    return found


def report(task: str, found: Findings) -> str:
    """Sizes, episodes, problems and notes, in lines."""
    spec = found.spec
    rows = [
        ("agents", f"{spec.n_agents}: {', '.join(found.agents)}"),
        ("observed", f"numbers: {_alike(spec.obs_dims)}; state: {spec.state_dim}"),
        ("actions", _alike(spec.n_actions)),
        ("limit", f"{spec.episode_limit} env steps"),
    ]
    if found.lengths:
        n, n_terminated = len(found.lengths), found.n_terminated
        ends = f"{n_terminated} terminated, {n - n_terminated} truncated"
        rows.append(("played", f"{n} random episodes of {_range(found.lengths)} env steps; {ends}"))
        rows.append(("returns", _range(found.returns)))
    lines = [task, *(f"  {name:10}{text}" for name, text in rows)]
    lines += [*_section("problems", found.problems), *_section("notes", found.notes)]
    return "\n".join([*lines, *([] if found.problems else ["  no problems"])])


def _section(title: str, seen: dict[str, list[str]]) -> Iterator[str]:
    if seen:
        yield f"  {title}"
    for text, places in list(seen.items())[:MOST_SHOWN]:
        often = [f"first in {places[0]}"] if places[0] else []
        often += [f"{len(places)} times"] if len(places) > 1 else []
        yield f"    - {text}" + (f" ({'; '.join(often)})" if often else "")
    if len(seen) > MOST_SHOWN:
        yield f"    and {len(seen) - MOST_SHOWN} more"


def _play_all(env: VecEnv, episodes: int, found: Findings) -> None:
    """Play each episode, then all of them once more: the same seeds and actions must give the same."""
    played = {}
    for k in range(episodes):
        try:
            played[k] = list(_episode(env, k, found))
        except RunError as error:
            found.problem(str(error).removeprefix("environment 0: "), f"episode {k}")
            continue
        _look(played[k], found)
    for k, steps in played.items():
        try:
            said = _difference(steps, list(_episode(env, k)), found.agents)
        except RunError as error:
            said = str(error).removeprefix("environment 0: ")
        if said:
            found.problem("the same seed and actions do not give the same episode", f"episode {k}: {said}")
    starts = [steps[0].obs for steps in played.values()]
    if len(starts) > 1 and all(torch.equal(obs, starts[0]) for obs in starts):
        found.note("all episodes begin with the same observations, whatever their seed")
    if found.lengths and not any(found.returns):
        found.note("the return of every episode was 0: the rewards of the team cancel out, or random play earns none")


def _episode(env: VecEnv, seed: int, found: Findings | None = None) -> Iterator[Step]:
    """Every step of an episode with random available actions; what is wrong in one is noted in `found`."""
    generator, now = torch.Generator().manual_seed(seed), env.reset(seed)
    for t in range(min(env.spec.episode_limit, MOST_STEPS) + 1):
        if found is not None:
            _look_at_step(env, now, f"episode {seed}, step {t}", found)
        yield now
        if bool(now.terminated | now.truncated):
            return
        weights = now.avail_actions.flatten(0, 1).float().cpu()
        chosen = torch.multinomial(weights, 1, generator=generator).view(1, -1)
        now = env.step(chosen.to(now.obs.device))


def _look_at_step(env: VecEnv, now: Step, place: str, found: Findings) -> None:
    """Numbers that are none or out of bounds, and agents that come back."""
    for name in ("obs", "state", "reward"):
        value = getattr(now, name)[0]
        if (bad := ~value.isfinite()).any():
            who = f" of agent {found.agents[int(bad.nonzero()[0][0])]!r}" if name == "obs" else ""
            found.problem(f"{name}{who} is {value[bad].flatten()[0].item()}", place)
    single = env.envs[0] if isinstance(env, SerialVector) else None
    if not isinstance(single, PettingZooEnv):
        return
    for agent, end in single.dead.items():
        if end < single.t and agent in single.env.agents:
            said = f"agent {agent!r} is in agents after its end; it stays dead until the next reset"
            found.problem(said, f"{place}: it ended at step {end}")
    for i, agent in enumerate(single.env.possible_agents):
        if now.alive is not None and now.alive[0, i]:
            _look_at_bounds(agent, now.obs[0, i].cpu().numpy(), single.env.observation_space(agent), place, found)


def _look_at_bounds(agent: Any, seen: np.ndarray, space: Any, place: str, found: Findings) -> None:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict) and {"observation", "action_mask"} <= space.spaces.keys():
        space = space["observation"]
    flat: Any = spaces.flatten_space(space)
    low, high = (bound.ravel().astype(np.float32) for bound in (flat.low, flat.high))
    seen = seen[: len(low)]
    if (bad := (seen < low) | (seen > high)).any():
        said = f"{seen[bad][0]:.4g}, declared are {low[bad][0]:g} to {high[bad][0]:g}"
        found.problem(f"observations of agent {agent!r} are outside of their space", f"{place}: {said}")


def _look_for_masks(single: PettingZooEnv, found: Findings) -> None:
    """Note what looks like a mask of actions, under a name that the adapter does not know."""
    for part, holders in zip(("observation", "info"), call("reset(seed=0)", single.env.reset, seed=0), strict=True):
        for agent, holder in holders.items():
            for key in holder if isinstance(holder, Mapping) and "action_mask" not in holder else ():
                if any(word in str(key).lower() for word in MASK_WORDS):
                    said = f"the {part} of agent {agent!r} has {key!r}, which looks like a mask of its actions"
                    found.note(f"{said}: nobody reads it, the name is 'action_mask'")


def _look(played: list[Step], found: Findings) -> None:
    """Length, return and end of one episode."""
    last = played[-1]
    found.lengths.append(len(played) - 1)
    found.returns.append(sum(float(step.reward) for step in played[1:]))
    found.n_terminated += bool(last.terminated)


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


def _api_test(task: str, found: Findings) -> None:
    """PettingZoo's own test of parallel environments, on an environment of its own."""
    import pettingzoo
    from pettingzoo.test import parallel_api_test

    vector: Any = make_env(task, 1)
    env = vector.envs[0].env
    if not isinstance(env, pettingzoo.ParallelEnv):
        found.note("its class is no pettingzoo.ParallelEnv: PettingZoo's parallel_api_test was left out")
        return
    # The test ends where spaces are not the same objects at each call, which we do not need: it would hide the rest.
    env.observation_space, env.action_space = cache(env.observation_space), cache(env.action_space)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call("PettingZoo's parallel_api_test", parallel_api_test, env, num_cycles=API_CYCLES)
    except RunError as error:
        found.problem(str(error))
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
