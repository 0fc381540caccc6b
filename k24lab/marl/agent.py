"""The network of a team: fc1 -> GRU -> fc2 -> fc3 -> fc4, seen by each agent through its masks, layers or as it is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.core.baselines import MagnitudeLinear24
from k24lab.core.gains import Gains
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks
from k24lab.errors import InputError
from k24lab.marl.config import TrainingConfig
from k24lab.methods import get_method
from k24lab.methods.base import LAYERS
from k24lab.ops import network
from k24lab.ops.gru import batched_gru
from k24lab.ops.linear import LayerWeights, linear, sparse_layers
from k24lab.ops.mask_draws import seen_through

Weights = Mapping[str, LayerWeights]
TWO_FOUR = (SemiStructuredLinear24, MagnitudeLinear24)  # layers whose matrices are 2:4, as each agent sees them


class RNNAgent(nn.Module):
    """The network of the whole team.

    The two matrices of the GRU are layers like the others (hidden -> 3 hidden, gates in torch's order r, z, n),
    so that whatever a layer can be (dense, separate, masked), the GRU can be.

    Args:
        input_dim: of an agent's observation, with its index if it has one.
        n_actions: of every agent, after padding.
        hidden_dim: of all layers.
        layer: makes the layer of a name, from its input and output size.
        gains: makes the gains of a layer, from its name and output size; None where it has none.
    """

    def __init__(
        self,
        input_dim: int,
        n_actions: int,
        hidden_dim: int,
        layer: Callable[[str, int, int], nn.Module],
        gains: Callable[[str, int], Gains | None] = lambda *_: None,
    ):
        super().__init__()
        self.hidden_dim = hidden_dim
        sizes = {
            "fc1": (input_dim, hidden_dim),
            "rnn_input": (hidden_dim, 3 * hidden_dim),
            "rnn_hidden": (hidden_dim, 3 * hidden_dim),
            "fc2": (hidden_dim, hidden_dim),
            "fc3": (hidden_dim, hidden_dim),
            "fc4": (hidden_dim, n_actions),
        }
        self.layers = nn.ModuleDict({name: layer(name, *sizes[name]) for name in LAYERS})
        each = {name: gains(name, sizes[name][1]) for name in LAYERS}
        self.gains = nn.ModuleDict({name: module for name, module in each.items() if module is not None})

    @property
    def masked_layers(self) -> dict[str, SemiStructuredLinear24]:
        """The layers with a 2:4 mask for each agent, by name, in the order of the network."""
        return {n: layer for n, layer in self.layers.items() if isinstance(layer, SemiStructuredLinear24)}

    def weights(self, masks: Mapping[str, Float[Tensor, "M out in"]] | None = None) -> dict[str, LayerWeights]:
        """What all layers compute with, under a mask for each of the `masked_layers` (None: there are none)."""
        masks, layers = masks or {}, cast(dict[str, Any], dict(self.layers.items()))
        seen = seen_through([layers[name].weight for name in masks], list(masks.values()))
        effective = {name: (own, layers[name].bias.unsqueeze(0)) for name, own in zip(masks, seen, strict=True)}
        effective |= {name: layer.effective() for name, layer in layers.items() if name not in masks}
        effective |= {name: gains(*effective[name]) for name, gains in self.gains.items()}
        sparse = {n: parts for n, parts in effective.items() if isinstance(layers[n], TWO_FOUR)}
        dense = {n: LayerWeights(*parts) for n, parts in effective.items() if n not in sparse}
        return dense | sparse_layers(sparse)

    def forward(
        self, obs: Float[Tensor, "N B I"], hidden: Float[Tensor, "N B H"] | None = None
    ) -> tuple[Float[Tensor, "N B A"], Float[Tensor, "N B H"]]:
        """One time step of N agents in B episodes: their Q-values and the next hidden state.

        In evaluation mode under the argmax masks, in training mode under masks drawn as `SemiStructuredLinear24` draws
        them (`k24lab.drawn_masks` for several steps). Training itself uses `unroll`, which sees whole sequences.

        Args:
            obs: observations, with the agent's index if the network has one as its input.
            hidden: of the step before; None before the first one.

        Examples:
            >>> import torch, k24lab
            >>> from k24lab.marl.agent import build_agent
            >>> agent = build_agent(k24lab.build_config(method="k24"), input_dim=8, n_actions=5, n_masks=3).eval()
            >>> q_values, hidden = agent(torch.randn(3, 10, 8))
            >>> q_values.shape
            torch.Size([3, 10, 5])
        """
        weights = self.weights({name: layer.mask() for name, layer in self.masked_layers.items()})
        networks = max(len(part) for layer in weights.values() for part in (layer.weight, layer.bias))
        if networks not in (1, len(obs)):
            raise InputError(f"obs of shape {tuple(obs.shape)}, expected ({networks}, B, I): one for each agent")
        hidden = obs.new_zeros(*obs.shape[:2], self.hidden_dim) if hidden is None else hidden
        # One network for all has the agents' rows side by side.
        rows = [x.flatten(0, 1).unsqueeze(0) if networks == 1 else x for x in (obs, hidden)]
        q_values, after = step(weights, rows[0].mT.contiguous(), rows[1].mT.contiguous())
        return q_values.mT.reshape(*obs.shape[:2], -1), after.mT.reshape(hidden.shape)

    @property
    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of single agents that may learn at a rate of their own; mask coefficients belong to the scheme."""
        return [parameter for module in self.modules() for parameter in getattr(module, "own", ())]

    @torch.no_grad()
    def argmax_weights(self) -> dict[str, LayerWeights]:
        """What all layers compute with, under the argmax masks."""
        layers = self.masked_layers
        return self.weights(dict(zip(layers, argmax_masks(list(layers.values())), strict=True)))

    def initial_hidden(self, n_networks: int, rows: int) -> Float[Tensor, "K H R"]:
        """Zeros, on the device and in the dtype of the network."""
        like = next(self.parameters())
        return torch.zeros(n_networks, self.hidden_dim, rows, device=like.device, dtype=like.dtype)


def build_agent(config: TrainingConfig, input_dim: int, n_actions: int, n_masks: int) -> RNNAgent:
    """The agent of the configured method; all have the same layers and sizes.

    Args:
        config: names the method and its settings.
        input_dim: as of `RNNAgent`.
        n_actions: as of `RNNAgent`.
        n_masks: agents, or unit types with mask_per="type".
    """
    method = get_method(config.method)

    def gains(name: str, out_features: int) -> Gains | None:
        return method.gains(config, name, out_features, n_masks)

    return RNNAgent(input_dim, n_actions, config.hidden_dim, method.layer_factory(config, n_masks), gains)


class Unrolled(NamedTuple):
    """Q-values of whole sequences, the last hidden state, and what went into each layer (for its running mean)."""

    q_values: Float[Tensor, "K A T R"]
    hidden: Float[Tensor, "K H R"]
    inputs: dict[str, Float[Tensor, "K in T R"]]


def unroll(weights: Weights, x: Float[Tensor, "K I T R"], hidden: Float[Tensor, "K H R"]) -> Unrolled:
    """Run the team over whole sequences: every layer but the GRU's hidden side sees all time steps at once.

    Features come before time steps and rows, so that a weight meets all its inputs in one run of memory.
    """
    done = network.unroll(weights, x, hidden)
    if done is not None:
        q_values, last, seen = done
        if seen is None:
            return Unrolled(q_values, last, {})
        after = seen.hidden[:, :, 1:]
        inputs = {"fc1": x, "rnn_input": seen.fc1, "rnn_hidden": after, "fc2": after, "fc3": seen.fc2, "fc4": seen.fc3}
        return Unrolled(q_values, last, inputs)
    inputs = {"fc1": x}
    inputs["rnn_input"] = linear(weights["fc1"], x, relu=True)
    gate_x = linear(weights["rnn_input"], inputs["rnn_input"])
    inputs["rnn_hidden"] = inputs["fc2"] = batched_gru(gate_x, hidden, *weights["rnn_hidden"][:2])
    inputs["fc3"] = linear(weights["fc2"], inputs["fc2"], relu=True)
    inputs["fc4"] = linear(weights["fc3"], inputs["fc3"], relu=True)
    return Unrolled(linear(weights["fc4"], inputs["fc4"]), inputs["fc2"][:, :, -1], inputs)


def step(
    weights: Weights, x: Float[Tensor, "K I R"], hidden: Float[Tensor, "K H R"]
) -> tuple[Float[Tensor, "K A R"], Float[Tensor, "K H R"]]:
    """One time step, for acting: q_values and the next hidden state."""
    unrolled = unroll(weights, x.unsqueeze(2), hidden)
    return unrolled.q_values.squeeze(2), unrolled.hidden
