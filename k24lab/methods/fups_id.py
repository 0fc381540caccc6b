"""Full parameter sharing with the agent's index in its observation."""

from k24lab.methods.base import Method


class FupsId(Method):
    """One dense network for all agents, which can tell them apart."""

    name = "fups-id"
    label = "shared + id"
    color = "#56B4E9"
    linestyle = (0, (5, 1, 1, 1, 1, 1))
    marker = "P"
    family = "fups"
    settings = {"agent_id": True}
