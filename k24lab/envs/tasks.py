"""Names of tasks as text: `name:key=value,...`, and the one spelling that stands for all others."""

import ast
from collections.abc import Mapping

from k24lab.errors import ConfigError

# What a value with commas in it begins with: brackets, and texts with or without a prefix.
OPENING = ("(", "[", "{", *(f"{prefix}{quote}" for prefix in ("", *"bBrRuU") for quote in "'\""))


def parse_task(task: str) -> tuple[str, dict[str, object]]:
    """Split `"name:key=value,key=value"` into the name and its options (Python literals or strings).

    The name may hold a colon itself: `pettingzoo/my.module:factory:key=value`. Spaces around names and values do not
    count.

    Raises:
        ConfigError: an option that is not of the form key=value, or one that is given twice.
    """
    name, _, options = task.partition(":")
    factory, _, rest = options.partition(":")
    if name.strip().startswith("pettingzoo/") and factory.strip().isidentifier():
        name, options = f"{name.strip()}:{factory.strip()}", rest
    values: dict[str, object] = {}
    for item in filter(None, map(str.strip, _items(options))):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not (equals and key.isidentifier()):
            raise ConfigError(f"task {task!r}: option {item!r} is not of the form key=value")
        value = _parse_value(text)
        if key in values:
            raise ConfigError(f"task {task!r}: option {key} is given twice, as {values[key]!r} and as {value!r}")
        values[key] = value
    return name.strip(), values


def format_task(name: str, options: Mapping[str, object]) -> str:
    """The one text of a task: options in alphabetic order, values as Python writes them, no spaces."""
    items = [f"{key}={_format_value(options[key])}" for key in sorted(options)]
    return f"{name}:{','.join(items)}" if items else name


def canonical_text(task: str) -> str:
    """The one spelling of a task, as far as its text alone tells: `rolenav: n_types=2, n_agents=3,` and its like.

    Options that repeat their environment's defaults stay: `k24lab.envs.registry.canonical_task` knows these.
    """
    return format_task(*parse_task(task))


def _items(options: str) -> list[str]:
    """The text between commas, but for those inside a value: `n=[1,2],mode='a,b'` has two items.

    A comma is inside a value that Python reads only with what follows it; words may hold any bracket or quote.
    """
    pieces, items = options.split(","), []
    while pieces:
        taken = 1
        if pieces[0].partition("=")[2].strip().startswith(OPENING):
            texts = (",".join(pieces[:n]).partition("=")[2].strip() for n in range(1, len(pieces) + 1))
            taken = next((n for n, text in enumerate(texts, start=1) if _parse_value(text) != text), 1)
        items.append(",".join(pieces[:taken]))
        pieces = pieces[taken:]
    return items


def _parse_value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a word
        return text


def _format_value(value: object) -> str:
    may_be_split = isinstance(value, str) and ("," in value or value.startswith(OPENING))
    if isinstance(value, str) and _parse_value(value.strip()) == value and not may_be_split:
        return value  # a word needs no quotes
    if isinstance(value, float):
        return repr(value + 0.0).replace("inf", "1e999")  # -0.0 + 0.0 is 0.0; inf is a word
    return repr(value)
