"""What an agent of a foreign environment sees and may do, checked against the spaces that it declares."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from k24lab.envs.foreign import ParallelEnv, brief, call
from k24lab.errors import ConfigError, RunError

Encode = Callable[[Any], np.ndarray]  # from an observation to a flat array; raises Unfit
NUMBERS = "biuf"  # kinds of numpy's types that are numbers: bool, signed, unsigned, floating
WHOLE = "biu"
KEYED = (dict, Mapping)  # the first alone would do, and is much faster
ALLOWED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


class Unfit(ValueError):
    """What an environment gave does not fit the space that it declares."""


def encoder(agent: object, space: Any) -> tuple[int, Encode]:
    """Size of an agent's flat observation, and the function that makes it.

    Box and MultiBinary are flattened, Discrete and MultiDiscrete are one-hot, Dict and Tuple are joined in their
    own order. Of a Dict with `observation` and `action_mask` the first alone is observed.

    Raises:
        ConfigError: a space that is none of these. The function raises Unfit for data outside of its space:
            another shape, no numbers, an index out of range, or a bit that is not 0 or 1. Bounds of a Box are
            not checked.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box | spaces.MultiBinary):
        encode = _numbers(space)
        return int(np.prod(space.shape)), encode if isinstance(space, spaces.Box) else _binary(encode, space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        return int(sizes.sum()), _one_hot(space, sizes)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = dict(space.spaces if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        encoders = {key: encoder(agent, part) for key, part in parts.items()}
        if {"observation", "action_mask"} <= parts.keys():
            return encoders["observation"][0], _masked(encoders["observation"][1], space)
        size = sum(size for size, _ in encoders.values())
        return size, _joined({key: encode for key, (_, encode) in encoders.items()}, space)
    raise ConfigError(f"agent {agent!r}: an observation space {short(space)} cannot be flattened (allowed: {ALLOWED})")


def discrete(agent: object, space: Any) -> Any:
    """An agent's action space.

    Raises:
        ConfigError: it is not Discrete.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return space
    hint = "; for an mpe2 environment leave continuous_actions=False" if isinstance(space, spaces.Box) else ""
    raise ConfigError(f"agent {agent!r}: action space {short(space)} is not supported (allowed: Discrete){hint}")


def action_mask(obs: Any, info: Any, n_actions: int) -> Bool[np.ndarray, " A"] | None:
    """The mask in an agent's observation, or else in its info; None without one.

    Raises:
        Unfit: not one number, 0 or 1, for each of its `n_actions`.
    """
    source = mask_holder(obs, info)
    if source is None:
        return None
    given = _array(source["action_mask"])
    if given.shape != (n_actions,):
        raise Unfit(f"its action_mask has shape {given.shape}, declared are {n_actions} actions")
    mask = given.astype(bool) if given.dtype.kind in NUMBERS else None
    if mask is None or not (mask == given).all():
        raise Unfit(f"its action_mask is {brief(source['action_mask'])}: allowed are 0 and 1")
    return mask


def mask_holder(obs: Any, info: Any) -> Mapping[Any, Any] | None:
    """The observation or else the info of an agent, whichever has an `action_mask`; None if neither has."""
    for source in (obs, info):
        if type(source) is not np.ndarray and isinstance(source, KEYED) and "action_mask" in source:
            return source
    return None


def read_spaces(env: ParallelEnv, agents: Iterable[Any]) -> dict[str, tuple[object, str]]:
    """How the spaces of all agents are laid out now, and how they read; by what is asked for them.

    Raises:
        RunError: the environment raises when it is asked.
    """
    found = {}
    for agent in agents:
        for kind in ("observation_space", "action_space"):
            space = call(asked := f"{kind}({agent!r})", getattr(env, kind), agent)
            found[asked] = (_layout(space), short(space))
    return found


def check_same_spaces(before: Mapping[str, tuple[object, str]], now: Mapping[str, tuple[object, str]]) -> None:
    """Compare what `read_spaces` has found at two times.

    Raises:
        RunError: a space has changed so that its observations or actions would be taken for others.
    """
    for asked, (layout, text) in before.items():
        if now[asked][0] != layout:
            raise RunError(f"{asked} must not change: it was {text} and is {now[asked][1]} after a reset")


def _layout(space: Any) -> object:
    """All of a space that its flat form depends on, in values that no later change of the space reaches."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return type(space).__name__, [(key, _layout(part)) for key, part in parts]
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        size = space.n if isinstance(space, spaces.Discrete) else space.nvec
        return type(space).__name__, np.asarray(size).tolist(), np.asarray(space.start).tolist()
    return type(space).__name__, getattr(space, "shape", None)


def _numbers(space: Any) -> Encode:
    """Numbers of one shape, as they are."""
    shape, flat = space.shape, len(space.shape) == 1

    def encode(value: Any) -> np.ndarray:
        array = value if type(value) is np.ndarray else _array(value)
        if array.shape != shape:
            raise Unfit(f"its observation has shape {array.shape}, declared is {shape} ({short(space)})")
        if array.dtype.kind not in NUMBERS:
            raise Unfit(f"its observation is {brief(value)}, declared are numbers ({short(space)})")
        return array if flat else array.ravel()

    return encode


def _binary(encode_numbers: Encode, space: Any) -> Encode:
    """Numbers that are 0 or 1."""

    def encode(value: Any) -> np.ndarray:
        array = encode_numbers(value)
        if not ((array == 0) | (array == 1)).all():
            raise Unfit(f"its observation is {brief(value)}, declared are 0 and 1 ({short(space)})")
        return array

    return encode


def _one_hot(space: Any, sizes: np.ndarray) -> Encode:
    """Ones where the indices are, each in a range of its own; numpy would take negative ones from the end."""
    shape, start = space.shape, np.ravel(space.start)
    before, total = np.cumsum(sizes) - sizes, int(sizes.sum())

    def encode(value: Any) -> np.ndarray:
        array = _array(value)
        if array.shape != shape:
            raise Unfit(f"its observation has shape {array.shape}, declared is {shape} ({short(space)})")
        if array.dtype.kind not in WHOLE:
            raise Unfit(f"its observation is {brief(value)}, declared are whole numbers ({short(space)})")
        index = array.astype(np.int64).ravel() - start
        if ((index < 0) | (index >= sizes)).any():
            lowest, highest = np.squeeze(start), np.squeeze(start + sizes - 1)
            raise Unfit(f"its observation is {brief(value)}, declared are {lowest} to {highest} ({short(space)})")
        row = np.zeros(total, np.float32)
        row[before + index] = 1
        return row

    return encode


def _joined(parts: Mapping[Any, Encode], space: Any) -> Encode:
    """The parts of a dictionary or a tuple, one after the other."""

    def encode(value: Any) -> np.ndarray:
        flat = [_part(value, key, encode_part, space) for key, encode_part in parts.items()]
        return np.concatenate([np.zeros(0, np.float32), *flat])

    return encode


def _masked(encode_observation: Encode, space: Any) -> Encode:
    """The observation beside an action mask, which must be there."""

    def encode(value: Any) -> np.ndarray:
        _part(value, "action_mask", np.asarray, space)
        return _part(value, "observation", encode_observation, space)

    return encode


def _part(value: Any, key: Any, encode: Encode, space: Any) -> np.ndarray:
    try:
        part = value[key]
    except (KeyError, IndexError, TypeError):
        raise Unfit(f"its observation is {brief(value)}, without the part {key!r} of {short(space)}") from None
    try:
        return encode(part)
    except Unfit as error:
        raise Unfit(f"part {key!r}: {error}") from None


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # ragged lists, or what an object's own conversion raises
        raise Unfit(f"{brief(value)} is no array: {error}") from None


def short(space: Any) -> str:
    """A space in one line: the bounds of a Box can be whole arrays."""
    text = " ".join(str(space).split())
    return text if len(text) <= 120 else f"{type(space).__name__} of shape {getattr(space, 'shape', None)}"
