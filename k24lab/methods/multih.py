"""A shared trunk with a head for each agent."""

from k24lab.methods.base import HEAD, Method


class MultiHead(Method):
    """Every agent (or unit type) has a last layer of its own."""

    name = "multih"
    label = "shared trunk, heads"
    color = "#999933"
    linestyle = (0, (4, 1, 1, 1))
    marker = "*"
    mask_settings = frozenset({"mask_per"})
    own_layers = (HEAD,)
