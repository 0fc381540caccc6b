"""Gains: one dense network, of which every agent has a gain and a bias of its own in each neuron."""

from k24lab.methods.base import Method

GAIN_SETTINGS = frozenset({"gain_layers", "gain_shrinkage", "own_lr_factor", "lr_factor_ramp", "mask_per", "grad_clip"})
GAIN_SEARCH = tuple({"own_lr_factor": factor} for factor in (3.0, 10.0, 30.0))
GAIN_DEFAULTS = {"own_lr_factor": 10.0, "lr_factor_ramp": 0.5}


class GainsMethod(Method):
    """Agents start alike; their gains learn slowly first and fast later, so that they part where that pays."""

    name = "gains"
    label = "gains"
    color = "#44AA99"
    linestyle = (0, (3, 1, 1, 1))
    marker = "h"
    settings = GAIN_DEFAULTS
    mask_settings = GAIN_SETTINGS
    has_gains = True
    search = GAIN_SEARCH
