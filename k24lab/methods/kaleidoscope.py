"""Kaleidoscope (Li et al., NeurIPS 2024): learnable thresholds for each agent over one shared network, unstructured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from k24lab.methods.base import Method, Search

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.config import MaskConfig
    from k24lab.core.schemes import MaskScheme


class Kaleidoscope(Method):
    """The settings of its repository where they are its own; network and learner as for all methods here."""

    name = "kaleidoscope"
    label = "Kaleidoscope"
    color = "#5D3A9B"
    linestyle = (0, (6, 2))
    marker = ">"
    settings = {
        "diversity_coef": 0.5,
        "diversity_coef_max": None,
        "after_anneal": "drawn",  # nothing is annealed, so resets go on to the end
        "reset_trigger": "periodic",
        "mask_rnn": False,
    }
    mask_settings = frozenset(
        "mask_rnn mask_per diversity_coef diversity_coef_max diversity_history after_anneal anneal_end reset_trigger "
        "reset_interval reset_ratio kl_threshold threshold_scale own_lr_factor lr_factor_ramp grad_clip".split()
    )
    switches = (
        ({"after_anneal": ("drawn",)}, "anneal_end"),
        ({"reset_trigger": ("off",)}, "after_anneal anneal_end"),
        ({"own_lr_factor": (1.0,), "lr_factor_ramp": (0.0,)}, "grad_clip"),
    )
    masks = "each"
    pattern = "any"
    learns_masks = True
    masks_rnn = False
    # How fast thresholds learn and how low they start go together: from -5 (u + 1) slow ones never drop a weight.
    search: ClassVar[Search] = (
        {"threshold_scale": 5.0, "own_lr_factor": 1.0},
        {"threshold_scale": 5.0, "own_lr_factor": 20.0},
        {"threshold_scale": 2.0, "own_lr_factor": 20.0},
    )

    def problems(self, config: MaskConfig) -> list[str]:
        """The GRU has no thresholds."""
        if not config.mask_rnn:
            return []
        return ["mask_rnn = True is not part of method = 'kaleidoscope': it masks fc1 to fc4"]

    def layer(self, config: MaskConfig, name: str, in_features: int, out_features: int, n_masks: int) -> nn.Module:
        """A layer with thresholds for each mask; dense and shared in the GRU."""
        from k24lab.core.baselines import ThresholdLinear

        if name not in self.masked_layers(config):
            return super().layer(config, name, in_features, out_features, n_masks)
        return ThresholdLinear(in_features, out_features, n_masks, config.threshold_scale)

    def mask_scheme(self, layers: Mapping[str, nn.Module], config: MaskConfig, t_max: int) -> MaskScheme:
        """Thresholds learn by the TD loss and the distance of the masks; weights that no mask keeps are reset."""
        from k24lab.core.schemes import ThresholdScheme

        return ThresholdScheme(layers, config, t_max)
