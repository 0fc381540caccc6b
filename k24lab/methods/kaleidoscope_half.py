"""Kaleidoscope that drops about half of its weights: what an unstructured mask returns at the sparsity of 2:4."""

from k24lab.methods.kaleidoscope import Kaleidoscope


class KaleidoscopeHalf(Kaleidoscope):
    """Thresholds start where |W| of a fresh layer lies. The share that is dropped is logged, and moves in training."""

    name = "kaleidoscope-half"
    label = "Kaleidoscope, half"
    color = "#332288"
    linestyle = (0, (6, 1))
    marker = "v"
    family = "kaleidoscope"
    settings = {**Kaleidoscope.settings, "threshold_scale": 2.0}
    search = tuple({"own_lr_factor": factor} for factor in (1.0, 5.0, 20.0))
