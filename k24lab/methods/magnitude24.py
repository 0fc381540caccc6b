"""One 2:4 mask for all agents, the two largest |W| of each four, trained straight through (SR-STE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k24lab.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.config import MaskConfig


class Magnitude24(Method):
    """Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021."""

    name = "magnitude24"
    label = "magnitude 2:4"
    color = "#8C6D31"
    linestyle = (0, (3, 1))
    marker = "<"
    mask_settings = frozenset({"mask_rnn"})
    masks = "one"

    def layer(self, config: MaskConfig, name: str, in_features: int, out_features: int, n_masks: int) -> nn.Module:
        """A layer under its magnitude mask, or a dense one."""
        from k24lab.core.baselines import MagnitudeLinear24

        if name not in self.masked_layers(config):
            return super().layer(config, name, in_features, out_features, n_masks)
        return MagnitudeLinear24(in_features, out_features)
