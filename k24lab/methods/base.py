"""What a method is: the settings it changes, the layers it builds, how its masks learn, how it looks in figures.

A method is one file beside this one and a line in `k24lab.methods.METHODS`. This module and those files import no
torch, so that figures, grids and the command line can ask about methods at no cost; layers and mask schemes import it
when they are built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import nn

    from k24lab.core.config import MaskConfig
    from k24lab.core.gains import Gains
    from k24lab.core.schemes import MaskScheme

LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")  # of every agent network, in this order
RNN_LAYERS = ("rnn_input", "rnn_hidden")  # the two matrices of the GRU
HEAD = "fc4"  # the layer whose outputs are the Q-values

# Settings and the values under which other settings have no effect, and which these are.
Switch = tuple[Mapping[str, tuple[object, ...]], str]


Search = tuple[Mapping[str, Any], ...]


class Method:
    """A team with one dense network for all agents; the other methods change what differs.

    Attributes:
        name: of the method, as `--method` takes it.
        label: in figures and tables.
        color: hexadecimal; `linestyle` and `marker` tell the method apart where colours do not print.
        family: the method that this one is with other settings; empty for itself.
        settings: what it changes of the defaults; a value that a user gives still wins.
        mask_settings: settings of masks (and of the learning of masks) that have an effect on it.
        masks: whether there are none, one for all agents, or one for each agent (or unit type).
        pattern: what a mask may be: 2:4, or any pattern.
        learns_masks: whether masks are trained through coefficients of their own, one for each weight and mask.
        own_layers: layers of which every agent (or unit type) has one of its own.
        masks_rnn: whether the GRU's matrices may be masked (with the setting `mask_rnn`).
        kept: share of the weights that an unstructured mask keeps; None where training decides.
        has_gains: whether every agent (or unit type) has a gain and a bias of its own in each neuron.
        search: values of its own setting that the study tries with each learning rate (docs/protocol.md); empty for a
            method that has no setting of its own.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    color: ClassVar[str]
    linestyle: ClassVar[str | tuple[int, tuple[int, ...]]] = "-"
    marker: ClassVar[str] = "o"
    family: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}
    mask_settings: ClassVar[Collection[str]] = ()
    switches: ClassVar[tuple[Switch, ...]] = ()
    masks: ClassVar[Literal["none", "one", "each"]] = "none"
    pattern: ClassVar[Literal["2:4", "any"]] = "2:4"
    learns_masks: ClassVar[bool] = False
    own_layers: ClassVar[Collection[str]] = ()
    masks_rnn: ClassVar[bool] = True
    kept: ClassVar[float | None] = None
    has_gains: ClassVar[bool] = False
    search: ClassVar[Search] = ()

    @property
    def separate(self) -> bool:
        """Whether agents (or unit types) have masks or layers of their own, instead of one network for all."""
        return self.masks == "each" or bool(self.own_layers) or self.has_gains

    def masked_layers(self, config: MaskConfig) -> tuple[str, ...]:
        """Names of the layers that have masks."""
        if self.masks == "none":
            return ()
        return LAYERS if self.masks_rnn and config.mask_rnn else tuple(n for n in LAYERS if n not in RNN_LAYERS)

    def problems(self, config: MaskConfig) -> list[str]:
        """A sentence for each setting that the method cannot have."""
        return []

    def layer(self, config: MaskConfig, name: str, in_features: int, out_features: int, n_masks: int) -> nn.Module:
        """The layer of that name; `n_masks` is the number of agents, or of unit types."""
        from k24lab.core.layers import DenseLinear

        return DenseLinear(in_features, out_features, n_masks if name in self.own_layers else 1)

    def layer_factory(self, config: MaskConfig, n_masks: int) -> Callable[[str, int, int], nn.Module]:
        """What makes the layers of one network, from name, input and output size."""
        return functools.partial(self.layer, config, n_masks=n_masks)

    def gains(self, config: MaskConfig, name: str, out_features: int, n_agents: int) -> Gains | None:
        """The gains of a layer, if it has any."""
        if not self.has_gains or config.gain_layers not in ("all", name):
            return None
        from k24lab.core.gains import Gains

        return Gains(n_agents, out_features)

    def mask_scheme(self, layers: Mapping[str, nn.Module], config: MaskConfig, t_max: int) -> MaskScheme:
        """How the masks of a network with these layers are sampled and learned."""
        from k24lab.core.schemes import MaskScheme

        return MaskScheme()
