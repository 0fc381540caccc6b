"""`k24lab doctor --task`: random episodes of a task, and what its environment does that it should not.

What an environment must do is written down in `k24lab.envs.pettingzoo.PettingZooEnv` for those of PettingZoo, and in
`k24lab.envs.base` (Step, VecEnv) for all. A run refuses what it cannot go on with, at every reset and step. Here whole
episodes are played, each of them twice, and everything else is looked at too.
"""

import contextlib
import io
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from k24lab.envs.base import Step, VecEnv
from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.pettingzoo_checks import call
from k24lab.envs.pettingzoo_watcher import Findings, Watcher
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError, RunError, told, warn

API_CYCLES = 100  # env steps of PettingZoo's own test, for each of its two resets
MOST_SHOWN = 20  # lines of problems, and of notes
MOST_STEPS = 10_000  # of an episode: more are not needed to see what an environment does


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
        watcher = Watcher(single, found) if isinstance(single, PettingZooEnv) else None
        try:
            _play_all(env, episodes, watcher, found)
        finally:
            env.close()
        if watcher is not None:
            watcher.summarise()
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
        ("agents", f"{spec.n_agents}: {_listed(found.agents)}"),
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


def _play_all(env: VecEnv, episodes: int, watcher: Watcher | None, found: Findings) -> None:
    """Play each episode, then all of them once more: the same seeds and actions must give the same."""
    played = {}
    for k in range(episodes):
        if watcher is not None:
            watcher.episode = k
        try:
            played[k] = list(_episode(env, k))
        except RunError as error:
            found.problem(str(error).removeprefix("environment 0: "), f"episode {k}")
            continue
        _look(played[k], k, found)
    if watcher is not None:
        watcher.episode = None
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
    _judge_lengths(found)


def _episode(env: VecEnv, seed: int) -> Iterator[Step]:
    """Every step of an episode with random available actions."""
    generator, now = torch.Generator().manual_seed(seed), env.reset(seed)
    yield now
    for _ in range(min(env.spec.episode_limit, MOST_STEPS)):
        weights = now.avail_actions.flatten(0, 1).float().cpu()
        chosen = torch.multinomial(weights, 1, generator=generator).view(1, -1)
        now = env.step(chosen.to(now.obs.device))
        yield now
        if bool(now.terminated | now.truncated):
            return


def _look(played: list[Step], k: int, found: Findings) -> None:
    """Numbers of one episode."""
    last = played[-1]
    found.lengths.append(len(played) - 1)
    found.returns.append(sum(float(step.reward) for step in played[1:]))
    found.n_terminated += bool(last.terminated)
    for t, step in enumerate(played):
        for name in ("obs", "state", "reward"):
            value = getattr(step, name)[0]
            bad = ~value.isfinite()
            if bad.any():
                who = f" of agent {found.agents[int(bad.nonzero()[0][0])]!r}" if name == "obs" else ""
                found.problem(f"{name}{who} is {value[bad].flatten()[0].item()}", f"episode {k}, step {t}")
    if not (last.terminated | last.truncated).all():
        found.note(f"an episode was broken off after {len(played) - 1} env steps")


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


def _judge_lengths(found: Findings) -> None:
    """Note what lengths and rewards tell of the limit and the task."""
    longest, limit = max(found.lengths, default=0), found.spec.episode_limit
    if longest < limit and found.n_terminated < len(found.lengths):
        said = f"the environment truncates after {longest} env steps at most, its limit is {limit}"
        found.note(f"{said}: memory is kept for the difference")
    if found.lengths and not any(found.returns):
        found.note(
            "the return of every episode was 0: the rewards of the team cancel out, or random play earns nothing"
        )


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
            call("the test", parallel_api_test, env, num_cycles=API_CYCLES)
    except RunError as error:
        found.problem(f"PettingZoo's parallel_api_test: {_api_error(error.__cause__)}")
    finally:
        vector.close()


def _api_error(cause: BaseException | None) -> str:
    """What failed: an assertion of the test without a message is its line."""
    assert cause is not None
    if isinstance(cause, AssertionError) and not any(cause.args):
        return f"failed at `{traceback.extract_tb(cause.__traceback__)[-1].line}`"
    return told(cause)


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


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _alike(sizes: tuple[int, ...]) -> str:
    return f"{sizes[0]} for each agent" if len(set(sizes)) == 1 else _listed([str(size) for size in sizes], 16)
