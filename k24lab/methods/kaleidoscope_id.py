"""Kaleidoscope whose agents also have ids, as in its authors' experiments."""

from k24lab.methods.kaleidoscope import Kaleidoscope


class KaleidoscopeId(Kaleidoscope):
    """The index of the agent is in its observation."""

    name = "kaleidoscope-id"
    label = "Kaleidoscope + id"
    color = "#AA4499"
    linestyle = (0, (8, 2))
    marker = "<"
    family = "kaleidoscope"
    settings = {**Kaleidoscope.settings, "agent_id": True}
