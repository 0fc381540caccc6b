"""K-2:4 with gains: every agent has a learned mask, and a gain and a bias of its own in each neuron."""

from k24lab.methods.gains import GAIN_DEFAULTS, GAIN_SEARCH, GAIN_SETTINGS
from k24lab.methods.k24_alpha import K24Alpha


class K24Gains(K24Alpha):
    """The masks of `k24-alpha` and the gains of `gains`."""

    name = "k24-gains"
    label = "K-2:4 with gains"
    color = "#882255"
    linestyle = (0, (4, 1))
    marker = "d"
    family = ""
    settings = {**K24Alpha.settings, **GAIN_DEFAULTS}
    mask_settings = K24Alpha.mask_settings | GAIN_SETTINGS
    has_gains = True
    search = GAIN_SEARCH
