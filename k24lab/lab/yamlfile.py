"""YAML as it is meant: no key twice, no numbers that are not what they look like."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from k24lab.errors import ConfigError

INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def load_yaml(text: str) -> Any:
    """The value of a YAML document (a safe loader).

    Raises:
        yaml.YAMLError: no YAML, or a key that stands twice in a mapping (of which YAML itself keeps the last).
        ConfigError: a number that YAML 1.1 reads in base 8 or 60: `010` would be 8, and `1:30:00` would be 5400.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        for key, part in _nodes(node, ""):
            _check_node(key, part)
        return loader.construct_document(node)
    except ValueError as error:  # the 13th month, say
        raise yaml.constructor.ConstructorError(None, None, str(error)) from error
    finally:
        loader.dispose()


def _nodes(root: yaml.Node, name: str) -> Iterator[tuple[str, yaml.Node]]:
    """Every node of a document, keys included, each once, with the key that it stands under."""
    seen: set[int] = set()  # what an anchor names is there several times, perhaps inside itself
    todo = [(name, root)]
    while todo:
        key, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield key, node
        if isinstance(node, yaml.SequenceNode):
            todo += [(key, part) for part in reversed(node.value)]
        elif isinstance(node, yaml.MappingNode):
            for inner, value in reversed(node.value):
                todo += [(str(inner.value) if isinstance(inner, yaml.ScalarNode) else key, value), (key, inner)]


def _check_node(key: str, node: yaml.Node) -> None:
    if isinstance(node, yaml.MappingNode):
        names = Counter(name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode))
        for name, n in names.items():
            if n > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} stands twice", node.start_mark)
    if not (isinstance(node, yaml.ScalarNode) and node.tag in (INT, FLOAT)):
        return
    number = node.value.lstrip("+-")
    octal = node.tag == INT and re.fullmatch(r"0[0-7_]+", number) and number.strip("0_")
    if base := 60 if ":" in number else 8 if octal else None:
        raise ConfigError(
            f"{key or 'the value'} = {node.value}: YAML reads this as a number in base {base}; "
            f"write it in base 10, or in quotes if it is text"
        )
