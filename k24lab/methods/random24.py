"""A fixed random 2:4 mask for each agent over one shared network."""

from k24lab.core.config import MaskConfig
from k24lab.methods.base import Method
from k24lab.methods.k24 import K24


class Random24(K24):
    """K-2:4 without learning of masks: only the weights are trained."""

    name = "random24"
    label = "random 2:4"
    color = "#009E73"
    linestyle = "--"
    marker = "D"
    settings = {"score_weight_power": 0.0, "score_ema_power": 0.0}
    mask_settings = frozenset({"hetero_init_scale", "mask_rnn", "mask_per", "score_weight_power", "score_ema_power"})
    learns_masks = False
    search = Method.search

    def problems(self, config: MaskConfig) -> list[str]:
        """Scores must not depend on what is trained."""
        if not (config.score_weight_power or config.score_ema_power):
            return []
        return ["score_weight_power and score_ema_power must be 0 with method = 'random24': its masks are fixed"]
