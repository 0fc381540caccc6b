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
        root = loader.get_single_node()
        for key, node in _nodes(root, "", set()) if root else ():
            if isinstance(node, yaml.MappingNode):
                _refuse_repeated_keys(node)
            elif isinstance(node, yaml.ScalarNode) and node.tag in (INT, FLOAT):
                _refuse_other_bases(key, node)
        return loader.construct_document(root) if root else None
    except ValueError as error:  # a date in the 13th month, for example
        raise yaml.constructor.ConstructorError(None, None, str(error)) from error
    finally:
        loader.dispose()


def _nodes(node: yaml.Node, key: str, seen: set[int]) -> Iterator[tuple[str, yaml.Node]]:
    """Every node of a document, keys included, with the key that it stands under.

    An anchor's node is met at every alias, perhaps inside itself, and given once.
    """
    if id(node) in seen:
        return
    seen.add(id(node))
    yield key, node
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            yield from _nodes(part, key, seen)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _nodes(name, key, seen)
            yield from _nodes(value, str(name.value) if isinstance(name, yaml.ScalarNode) else key, seen)


def _refuse_repeated_keys(mapping: yaml.MappingNode) -> None:
    names = Counter(name.value for name, _ in mapping.value if isinstance(name, yaml.ScalarNode))
    for name, n in names.items():
        if n > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name} stands twice", mapping.start_mark)


def _refuse_other_bases(key: str, node: yaml.ScalarNode) -> None:
    number = node.value.lstrip("+-")
    octal = node.tag == INT and re.fullmatch(r"0[0-7_]+", number) and number.strip("0_")
    if base := 60 if ":" in number else 8 if octal else None:
        raise ConfigError(
            f"{key or 'the value'} = {node.value}: YAML reads this as a number in base {base}; "
            f"write it in base 10, or in quotes if it is text"
        )
