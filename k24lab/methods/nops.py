"""No parameter sharing: a network for each agent."""

from k24lab.methods.base import LAYERS, Method


class Nops(Method):
    """Every agent (or unit type) has all layers of its own."""

    name = "nops"
    label = "separate networks"
    color = "#000000"
    linestyle = ":"
    marker = "X"
    mask_settings = frozenset({"mask_per"})
    own_layers = LAYERS
