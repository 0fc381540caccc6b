"""Calls of other people's environments, in which whatever is raised is one error, and what they must have."""

import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from k24lab.errors import ConfigError, RunError, told

ParallelEnv = Any  # pettingzoo.ParallelEnv, or any class with its methods: the package is imported only when used

LIMIT_ATTRIBUTES = ("max_cycles", "max_steps", "max_episode_steps", "episode_limit")
NUMBERS = "biuf"  # kinds of NumPy's types that are numbers: bool, signed, unsigned, floating


def call(what: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What `function` returns.

    Raises:
        RunError: it raised anything but KeyboardInterrupt, which is the user's; `what` says what was called.
    """
    try:
        return function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: an environment does not decide that a run has succeeded
        raise RunError(f"{what} raised {told(error)}") from error


def brief(value: object) -> str:
    """A value in a few words: its type, and its beginning."""
    if value is None:
        return "None"
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:  # of its own repr, or of an integer with more digits than Python prints
        return type(value).__name__
    return f"{type(value).__name__} {text}"


def scalar(value: object) -> Any:
    """The number or truth value that a scalar of Python or NumPy, or an array without axes, holds; else None."""
    try:
        array = np.asarray(value)
    except Exception:  # of ragged lists, or of the value's own conversion
        return None
    return array.item() if array.ndim == 0 and array.dtype.kind in NUMBERS else None


def names_in(what: str, value: Any) -> list[Any]:
    """The names of agents that an environment lists.

    Raises:
        RunError: it lists none, or something that cannot be a key of a dictionary.
    """
    try:
        names = list(value)
        hash((*names,))
    except TypeError:
        raise RunError(f"{what} must be a list of agents, not {brief(value)}") from None
    return names


def check_parallel(env: ParallelEnv) -> list[Any]:
    """The names of the agents; raises ConfigError for what is no parallel environment or names an agent twice."""
    if hasattr(env, "agent_iter"):
        raise ConfigError(
            f"{env} is a turn-based (AEC) environment; a parallel one is needed: its module's `parallel_env`, "
            "or pettingzoo.utils.aec_to_parallel"
        )
    needed = ("possible_agents", "reset", "step", "observation_space", "action_space")
    if missing := [name for name in needed if not hasattr(env, name)]:
        raise ConfigError(f"{env!r} is no PettingZoo parallel environment: it lacks {', '.join(missing)}")
    names = names_in("possible_agents", env.possible_agents)
    if not names:
        raise ConfigError(f"{env} has no agents")
    if len(set(map(str, names))) < len(names):
        raise ConfigError(f"possible_agents of {env} names an agent twice: {names}")
    return names


def find_episode_limit(env: ParallelEnv, given: object, named: object) -> int:
    """The given limit, the one that the environment names, or that of its options; in env steps.

    Raises:
        ConfigError: there is none, or it is no whole number of at least 1.
    """
    holders = (env, getattr(env, "unwrapped", env))
    found = [getattr(holder, name, None) for holder in holders for name in LIMIT_ATTRIBUTES]
    limit = next((value for value in (given, *found, named) if value is not None), None)
    if limit is None:
        raise ConfigError(
            f"{env} names no episode limit (looked for {', '.join(LIMIT_ATTRIBUTES)}): set the option episode_limit"
        )
    number = scalar(limit)  # NumPy's types and 10.0 will do
    if number is None or number < 1 or number % 1 or isinstance(number, bool):
        raise ConfigError(f"episode limit {brief(limit)} of {env}: must be a whole number of env steps, at least 1")
    return int(number)
