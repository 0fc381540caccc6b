"""Gains on a network that is 2:4 by magnitude: one packed network for the team, and 2 numbers per neuron and agent."""

from k24lab.methods.gains import GAIN_DEFAULTS, GAIN_SEARCH, GAIN_SETTINGS
from k24lab.methods.magnitude24 import Magnitude24


class Gains24(Magnitude24):
    """One mask for all agents, two largest |W| of each four, and gains of their own."""

    name = "gains24"
    label = "gains 2:4"
    color = "#117733"
    linestyle = (0, (5, 1))
    marker = "p"
    settings = GAIN_DEFAULTS
    mask_settings = GAIN_SETTINGS | {"mask_rnn"}
    has_gains = True
    search = GAIN_SEARCH
