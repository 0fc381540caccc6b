"""K-2:4: a learnable 2:4 mask for each agent over one shared network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from k24lab.core.config import MaskConfig
from k24lab.methods.base import Method, Search

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.schemes import MaskScheme

# All settings that some methods do not use: of what makes agents differ, and one of the learner that treats it apart.
ALL_MASK_SETTINGS = frozenset({field.name for field in dataclasses.fields(MaskConfig)} - {"agent_id"} | {"grad_clip"})
OTHERS_SETTINGS = frozenset({"threshold_scale", "gain_layers", "gain_shrinkage", "embedding_dim", "own_lr_factor"})
SEARCH = tuple({"alpha_lr_factor": factor} for factor in (1.0, 5.0, 20.0))


class K24(Method):
    """Masks scored by |W| · EMA(|x|) · sigmoid(alpha), drawn while they learn and pushed apart."""

    name = "k24"
    label = "K-2:4"
    color = "#0072B2"
    mask_settings = ALL_MASK_SETTINGS - OTHERS_SETTINGS
    search: ClassVar[Search] = SEARCH
    masks = "each"
    learns_masks = True

    def layer(self, config: MaskConfig, name: str, in_features: int, out_features: int, n_masks: int) -> nn.Module:
        """A masked layer, or a dense one for all where `mask_rnn` leaves the GRU without masks."""
        from k24lab.core.layers import SemiStructuredLinear24

        if name not in self.masked_layers(config):
            return super().layer(config, name, in_features, out_features, n_masks)
        return SemiStructuredLinear24(in_features, out_features, n_masks, config=config, learn_masks=self.learns_masks)

    def mask_scheme(self, layers: Mapping[str, nn.Module], config: MaskConfig, t_max: int) -> MaskScheme:
        """Masks drawn from the scores once an update."""
        from k24lab.core.schemes import PatternScheme

        return PatternScheme(layers, config, t_max, learns=self.learns_masks)
