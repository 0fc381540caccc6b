"""Values as users write them, in the types that settings and options have."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from k24lab.errors import unknown

LARGEST_EXACT = 2**53  # whole numbers up to here are floats without loss


def convert(kind: Any, value: Any) -> Any:
    """`value` as the field's type; refuses what would lose or change it. Raises TypeError with the reason.

    Scalars and 0-d arrays of numpy (or torch, or jax) count as the number, truth value or text that they hold.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            hint = " (YAML takes off for False: write 'off')" if value is False and "off" in get_args(kind) else ""
            raise TypeError(f"is not allowed: {unknown('choice', value, map(str, get_args(kind)))}{hint}")
        return value
    choices = get_args(kind) or (kind,)  # float | None
    if value is None and type(None) in choices:
        return None
    kind = choices[0]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > LARGEST_EXACT:
            raise TypeError(f"is larger than {LARGEST_EXACT}, where floats skip whole numbers: write it with a point")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0e+5 in YAML, 1e5 in a notebook
    if type(value) is not kind:
        hint = f" (YAML takes it for text: write {float(value)!r})" if kind is float and _is_number(value) else ""
        hint = " (in quotes, or with an e: write it in digits)" if kind is int and _is_number(value) else hint
        raise TypeError(f"is {_article(type(value))}, not {_article(kind)}{hint}")
    return value


def range_problems(
    values: Mapping[str, Any], positive: Iterable[str], not_negative: Iterable[str], share: Iterable[str]
) -> list[str]:
    """Every value that is not finite, and those of the named ones that are out of their range, as sentences."""
    floats = {name: value for name, value in values.items() if isinstance(value, float)}
    problems = [
        f"{name} = {value!r} is not a finite number" for name, value in floats.items() if not math.isfinite(value)
    ]
    for names, holds, text in (
        (positive, lambda v: v > 0, "above 0"),
        (not_negative, lambda v: v >= 0, "at least 0"),
        (share, lambda v: 0 <= v <= 1, "in [0, 1]"),
    ):
        problems += [f"{name} = {values[name]!r} must be {text}" for name in names if not holds(values[name])]
    return problems


def _article(kind: type) -> str:
    return f"an {kind.__name__}" if kind is int else f"a {kind.__name__}"


def _is_number(value: object) -> bool:
    """Whether a text is a number that stands in quotes, or that YAML did not recognise."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
