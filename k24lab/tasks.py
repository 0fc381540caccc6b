"""Names of tasks as text: `name:key=value,...`, and the one spelling that stands for all others."""

import ast
from collections.abc import Mapping

from k24lab.errors import ConfigError


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
    for item in filter(None, map(str.strip, options.split(","))):
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

    Options that repeat their environment's defaults stay: `k24lab.envs.canonical` knows these.

    Raises:
        ConfigError: as `parse_task`.
    """
    return format_task(*parse_task(task))


def spelt(task: object) -> object:
    """`canonical_text` of what a file holds as its task; what is no task is left as it is."""
    try:
        return canonical_text(task) if isinstance(task, str) else task
    except ConfigError:
        return task


def _parse_value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # a word
        return text


def _format_value(value: object) -> str:
    if isinstance(value, str) and _parse_value(value.strip()) == value:
        return value  # a word needs no quotes
    if isinstance(value, float):
        return repr(value + 0.0).replace("inf", "1e999")  # -0.0 + 0.0 is 0.0; inf is a word
    return repr(value)
