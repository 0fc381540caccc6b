"""HyperMARL (Tessera et al., NeurIPS 2025): a hypernetwork makes each agent's layers from its embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from k24lab.methods.base import HEAD, Method

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.config import MaskConfig

VALUE_GAIN = 1.0  # of the last layer's start, as its critics have


class Hyper(Method):
    """As in its recurrent networks the layers behind the GRU are generated; what lies before them is shared."""

    name = "hyper"
    label = "HyperMARL"
    color = "#CC6677"
    linestyle = (0, (1, 2))
    marker = "H"
    mask_settings = frozenset({"mask_per", "embedding_dim"})
    own_layers = ("fc2", "fc3", HEAD)
    search = tuple({"embedding_dim": size} for size in (4, 16, 64))

    def layer_factory(self, config: MaskConfig, n_masks: int) -> Callable[[str, int, int], nn.Module]:
        """All generated layers of a network read one embedding."""
        from k24lab.core.hypernetwork import GAIN, HyperLinear, fresh_embedding

        embedding = fresh_embedding(n_masks, config.embedding_dim)

        def layer(name: str, in_features: int, out_features: int) -> nn.Module:
            if name not in self.own_layers:
                return self.layer(config, name, in_features, out_features, n_masks)
            return HyperLinear(in_features, out_features, embedding, VALUE_GAIN if name == HEAD else GAIN)

        return layer
