"""K-2:4 as it was first designed, as far as settings express it."""

from k24lab.methods.k24 import K24


class K24Literal(K24):
    """Hard Gumbel-softmax on raw scores, masks drawn anew for learning, targets and acting.

    docs/method.md lists what the original design does and these settings do not.
    """

    name = "k24-literal"
    label = "K-2:4 (literal)"
    color = "#CC79A7"
    linestyle = (0, (1, 1))
    marker = "v"
    family = "k24"
    settings = {
        "noise": "literal",
        "target_masks": "drawn",
        "acting_masks": "drawn",
        "ema_scope": "shared",
        "hetero_init_scale": 0.01,
        "alpha_lr_factor": 1.0,
        "score_gradient": "all",
        "temperature_schedule": "linear",
        "anneal_end": 0.64,  # the design scales the time by 0.8 twice
        "after_anneal": "drawn",
        "diversity_coef": 0.1,
        "diversity_coef_max": None,
        "reset_trigger": "periodic",
        "reset_target": "random",
        "mask_rnn": False,
        "td_loss": "mse",
        "grad_clip": "all",
        "lr_final": None,
    }
