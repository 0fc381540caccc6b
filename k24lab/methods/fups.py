"""Full parameter sharing: one dense network for all agents."""

from k24lab.methods.base import Method


class Fups(Method):
    """Agents with equal observations act alike."""

    name = "fups"
    label = "shared"
    color = "#E69F00"
    linestyle = "-."
    marker = "^"
