"""A griffe extension: the API reference lists the fields of dataclasses and NamedTuples with their comments.

The package documents fields with comments, on the line of the field or on the lines above it, because the command line
shows these as its help.
"""

import re
from itertools import takewhile
from typing import Any

import griffe

TRAILING = re.compile(r"  # (.*)$")


class DocumentFields(griffe.Extension):
    """Adds a section of attributes to the docstring of every class that consists of fields."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """List the fields, unless the docstring does."""
        made_of_fields = [str(mark) for mark in [*cls.bases, *(decorator.value for decorator in cls.decorators)]]
        if not any("dataclass" in mark or "NamedTuple" in mark for mark in made_of_fields):
            return
        fields = [
            m for m in cls.members.values() if isinstance(m, griffe.Attribute) and m.annotation and not m.is_private
        ]
        if cls.docstring and fields and "Attributes:" not in cls.docstring.value:
            lines = [f"    {field.name}: {_meaning(field)}" for field in fields]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def _meaning(field: griffe.Attribute) -> str:
    """The comment of a field, and its default."""
    lines, first, last = field.lines_collection[field.filepath], field.lineno or 1, field.endlineno or 1
    above = takewhile(lambda line: line.startswith("#"), (line.strip() for line in reversed(lines[: first - 1])))
    comments = [line.lstrip("# ") for line in above][::-1]
    if trailing := TRAILING.search(lines[last - 1]):
        comments.append(trailing[1])
    if field.value is not None:
        comments.append(f"(default `{field.value}`)")
    return " ".join(comments) or "see its type"
