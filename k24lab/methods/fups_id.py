"""Full parameter sharing with the agent's index in its observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k24lab.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.config import MaskConfig


class FupsId(Method):
    """One dense network for all agents, which can tell them apart."""

    name = "fups-id"
    label = "shared + id"
    color = "#56B4E9"
    linestyle = (0, (5, 1, 1, 1, 1, 1))
    marker = "P"
    family = "fups"
    settings = {"agent_id": True}
    mask_settings = frozenset({"own_lr_factor", "lr_factor_ramp", "grad_clip"})
    switches = (({"own_lr_factor": (1.0,), "lr_factor_ramp": (0.0,)}, "grad_clip"),)
    search = tuple({"own_lr_factor": factor} for factor in (1.0, 5.0, 20.0))

    def layer(self, config: MaskConfig, name: str, in_features: int, out_features: int, n_masks: int) -> nn.Module:
        """A dense layer, in which the ids are a parameter apart if they learn at a rate of their own."""
        apart = config.own_lr_factor != 1 or config.lr_factor_ramp
        if name != "fc1" or not apart or not config.agent_id:
            return super().layer(config, name, in_features, out_features, n_masks)
        from k24lab.core.gains import IdLinear

        return IdLinear(in_features, out_features, n_masks)
