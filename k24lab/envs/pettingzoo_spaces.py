"""What an agent of a parallel environment observes and may do, checked against the spaces that it declares."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from k24lab.errors import ConfigError

Encode = Callable[[Any], np.ndarray]  # from an observation to a flat array; raises Unfit
NUMBERS = "biuf"  # kinds of NumPy's types that are numbers: bool, signed, unsigned, floating
KEYED = (dict, Mapping)  # the first alone would do, and is much faster
NOTHING = np.zeros(0, np.float32)
ALLOWED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


class Unfit(ValueError):
    """What an environment gave does not fit the space that it declares."""


def encoder(agent: object, space: Any) -> tuple[int, Encode]:
    """Size of an agent's flat observation, and the function that makes it.

    As `gymnasium.spaces.flatten`: Box and MultiBinary are flattened, Discrete and MultiDiscrete are one-hot, Dict and
    Tuple are joined in their own order. Of a Dict with `observation` and `action_mask` the first alone is observed.

    Raises:
        ConfigError: a space that is none of these. The function raises Unfit for data outside of its space; types and
            bounds of a Box are not checked, only that there are numbers of its shape.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape)), _numbers(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return spaces.flatdim(space), _member(space)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = dict(space.spaces if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        encoders = {key: encoder(agent, part) for key, part in parts.items()}
        if {"observation", "action_mask"} <= parts.keys():  # the mask must be there, and is no observation
            encoders = {"observation": encoders["observation"], "action_mask": (0, lambda mask: NOTHING)}
        return sum(size for size, _ in encoders.values()), _joined({key: e for key, (_, e) in encoders.items()}, space)
    raise ConfigError(f"agent {agent!r}: an observation space {short(space)} cannot be flattened (allowed: {ALLOWED})")


def discrete(agent: object, space: Any) -> Any:
    """An agent's action space; raises ConfigError if it is not Discrete."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return space
    options = "continuous=False of pistonball, continuous_actions=False of mpe2"
    hint = f"; some environments have an option for that: {options}" if isinstance(space, spaces.Box) else ""
    raise ConfigError(f"agent {agent!r}: action space {short(space)} is not supported (allowed: Discrete){hint}")


def action_mask(obs: Any, info: Any, n_actions: int) -> Bool[np.ndarray, " A"] | None:
    """The mask in an agent's observation, or else in its info; None without one.

    Raises:
        Unfit: not one number, 0 or 1, for each of its `n_actions`.
    """
    for source in (obs, info):
        if type(source) is not np.ndarray and isinstance(source, KEYED) and "action_mask" in source:
            given = np.asarray(source["action_mask"])
            if given.shape != (n_actions,) or not ((given == 0) | (given == 1)).all():
                raise Unfit(f"its action_mask is {brief(given)}: allowed are {n_actions} numbers, each 0 or 1")
            return given.astype(bool)
    return None


def _numbers(space: Any) -> Encode:
    """Numbers of one shape, as they are."""
    shape = space.shape

    def encode(value: Any) -> np.ndarray:
        array = np.asarray(value)
        if array.shape != shape or array.dtype.kind not in NUMBERS:
            raise Unfit(f"its observation has shape {array.shape}, declared is {short(space)}: {brief(value)}")
        return array.ravel()

    return encode


def _member(space: Any) -> Encode:
    """Indices or bits: only members of the space, of which NumPy would take negative ones from the end."""
    from gymnasium import spaces

    def encode(value: Any) -> np.ndarray:
        array = np.asarray(value)
        array = array.astype(np.int64) if array.dtype.kind == "b" else array
        if not space.contains(array):
            raise Unfit(f"its observation is {brief(value)}, which is not in {short(space)}")
        return np.asarray(spaces.flatten(space, array))

    return encode


def _joined(parts: Mapping[Any, Encode], space: Any) -> Encode:
    """The parts of a dictionary or a tuple, one after the other."""

    def encode(value: Any) -> np.ndarray:
        try:
            given = [value[key] for key in parts]
        except (KeyError, IndexError, TypeError):
            raise Unfit(f"its observation is {brief(value)}, without a part of {short(space)}") from None
        return np.concatenate([NOTHING, *(encode(part) for encode, part in zip(parts.values(), given, strict=True))])

    return encode


def brief(value: object) -> str:
    """A value in a few words: its type, and its beginning."""
    return f"{type(value).__name__} {' '.join(reprlib.repr(value).split())}"


def short(space: Any) -> str:
    """A space in one line: the bounds of a Box can be whole arrays."""
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{type(space).__name__} of shape {getattr(space, 'shape', None)}"
