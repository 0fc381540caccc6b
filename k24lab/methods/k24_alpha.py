"""K-2:4 whose masks are learned by the TD loss alone, slowly, from a random start: the recommended settings."""

from k24lab.methods.k24 import K24


class K24Alpha(K24):
    """The score is sigmoid(alpha) alone, and learning always uses the masks that act.

    The study `notebooks/grids/regimes.yaml` compares these settings with others.
    """

    name = "k24-alpha"
    label = "K-2:4 (α only)"
    color = "#D55E00"
    marker = "s"
    family = "k24"
    settings = {
        "score_weight_power": 0.0,
        "score_ema_power": 0.0,
        "noise": "none",
        "diversity_coef": 0.0,
        "alpha_lr_factor": 5.0,
    }
