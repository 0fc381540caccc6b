"""YAML as it is meant: no key twice, no numbers that are not what they look like."""

import re
from typing import Any

import yaml

from k24lab.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice (YAML keeps the last), and numbers that YAML 1.1 reads in base 8 or 60."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice.pop()} stands twice", node.start_mark)
        return node

    def _number(self, node: Any) -> Any:
        text = node.value.lstrip("+-")
        if ":" in text or re.fullmatch(r"0[0-7_]*[1-7][0-7_]*", text):
            raise ConfigError(
                f"{node.value}: YAML reads this as a number in base {60 if ':' in text else 8}; "
                "write it in base 10, or in quotes if it is text"
            )
        is_int = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._number)


def load_yaml(text: str) -> Any:
    """The value of a YAML document (a safe loader).

    Raises:
        yaml.YAMLError: no YAML, or a key that stands twice in a mapping.
        ConfigError: a number that YAML 1.1 reads in base 8 or 60: `010` would be 8, and `1:30:00` would be 5400.
    """
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:  # a date in the 13th month, for example
        raise yaml.constructor.ConstructorError(None, None, str(error)) from error
