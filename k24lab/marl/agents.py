"""Recurrent agents: fc1 -> GRU -> fc2 -> fc3 -> fc4, one network for the team, seen through each agent's masks."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.config import Config
from k24lab.marl.gru import batched_gru
from k24lab.sparsity.layers import SemiStructuredLinear24

LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
RNN_LAYERS = ("rnn_input", "rnn_hidden")


class LayerWeights(NamedTuple):
    """What a layer computes with: K = N matrices (agent n uses the n-th), or K = 1 for all agents."""

    weight: Float[Tensor, "K out in"]
    bias: Float[Tensor, "Kb out"]


Weights = Mapping[str, LayerWeights]


class DenseLinear(nn.Module):
    """`n_networks` independent dense layers (1: shared by all agents)."""

    def __init__(self, in_features: int, out_features: int, n_networks: int = 1):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(n_networks, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_networks, out_features).uniform_(-bound, bound))


class RNNAgent(nn.Module):
    """The network of the whole team.

    The two matrices of the GRU are layers like the others (hidden -> 3 hidden, gates in torch's order r, z, n),
    so that whatever a layer can be (dense, separate, masked), the GRU can be.

    Args:
        linear: makes the layer of a name, from its input and output size.
    """

    def __init__(
        self,
        input_dim: int,
        n_actions: int,
        hidden_dim: int,
        linear: Callable[[str, int, int], nn.Module],
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
        self.layers = nn.ModuleDict({name: linear(name, *sizes[name]) for name in LAYERS})

    @property
    def masked_layers(self) -> dict[str, SemiStructuredLinear24]:
        """The layers with masks, by name, in the order of the network."""
        return {n: layer for n, layer in self.layers.items() if isinstance(layer, SemiStructuredLinear24)}

    def weights(self, masks: Mapping[str, Tensor] | None = None) -> dict[str, LayerWeights]:
        """Effective weights of all layers under the given masks [M, out, in] (one for each masked layer)."""
        effective = {}
        for name, layer in self.layers.items():
            if isinstance(layer, SemiStructuredLinear24):
                assert masks is not None, f"layer {name} needs a mask"
                effective[name] = LayerWeights(layer.weight * masks[name], layer.bias.unsqueeze(0))
            else:
                assert isinstance(layer, DenseLinear)
                effective[name] = LayerWeights(layer.weight, layer.bias)
        return effective

    def initial_hidden(self, n_agents: int, batch: int) -> Float[Tensor, "N B H"]:
        """Zeros, on the device and in the dtype of the network."""
        like = next(self.parameters())
        return torch.zeros(n_agents, batch, self.hidden_dim, device=like.device, dtype=like.dtype)


class K24RNNAgent(RNNAgent):
    """The design document's agent: fc1 to fc4 masked per agent, and with `mask_rnn` the GRU's matrices too."""

    def __init__(self, input_dim: int, n_actions: int, n_masks: int, config: Config):
        def linear(name: str, in_features: int, out_features: int) -> nn.Module:
            if name in RNN_LAYERS and not config.mask_rnn:
                return DenseLinear(in_features, out_features)
            return SemiStructuredLinear24(
                in_features, out_features, n_masks, config=config, learn_masks=config.learns_masks
            )

        super().__init__(input_dim, n_actions, config.hidden_dim, linear)


class K24TypeRNNAgent(K24RNNAgent):
    """The design document's agent for unit types: one mask per type, for however many units of it there are.

    Which unit uses which mask is decided per episode, by the types at reset (`k24lab.marl.rows.TypeRows`).
    """


def build_agent(config: Config, input_dim: int, n_actions: int, n_masks: int) -> RNNAgent:
    """The agent of the configured method; all have the same layers and sizes. `n_masks`: agents or unit types."""
    if config.masked:
        kind = K24TypeRNNAgent if config.per_type else K24RNNAgent
        return kind(input_dim, n_actions, n_masks, config)
    n_networks = n_masks if config.method == "nops" else 1
    return RNNAgent(input_dim, n_actions, config.hidden_dim, lambda _, i, o: DenseLinear(i, o, n_networks))


def apply_linear(layer: LayerWeights, x: Float[Tensor, "N *batch in"]) -> Float[Tensor, "N *batch out"]:
    """One matmul for the team where all agents share the weights, one batched matmul over agents otherwise."""
    if len(layer.weight) == 1:
        return F.linear(x, layer.weight[0], layer.bias[0])
    flat = x.reshape(len(x), -1, x.shape[-1])
    return torch.baddbmm(layer.bias.unsqueeze(1), flat, layer.weight.mT).reshape(*x.shape[:-1], -1)


def _gru_over_time(
    rnn_input: LayerWeights, rnn_hidden: LayerWeights, x: Float[Tensor, "N T B H"], hidden: Float[Tensor, "N B H"]
) -> Float[Tensor, "N T B H"]:
    """Hidden states of whole sequences: torch's GRU where the team shares its weights, a batched one otherwise."""
    n_agents, t, batch, hidden_dim = x.shape
    if len(rnn_input.weight) == len(rnn_hidden.weight) == 1:
        params = [rnn_input.weight[0], rnn_hidden.weight[0], rnn_input.bias[0], rnn_hidden.bias[0]]
        x = x.transpose(0, 1).reshape(t, -1, hidden_dim)
        out = torch.gru(x, hidden.reshape(1, -1, hidden_dim), params, True, 1, 0.0, False, False, False)[0]
        return out.reshape(t, n_agents, batch, hidden_dim).transpose(0, 1)
    weight = rnn_hidden.weight.expand(n_agents, -1, -1)
    return batched_gru(apply_linear(rnn_input, x), hidden, weight, rnn_hidden.bias.expand(n_agents, -1))


class Unrolled(NamedTuple):
    """Q-values of whole sequences, and what went into each layer (for the running mean of activations)."""

    q_values: Float[Tensor, "N T B A"]
    inputs: dict[str, Float[Tensor, "N T B in"]]


def unroll(weights: Weights, x: Float[Tensor, "N T B I"], hidden: Float[Tensor, "N B H"]) -> Unrolled:
    """Run the team over whole sequences: every layer but the GRU's hidden side sees all time steps at once."""
    inputs = {"fc1": x}
    inputs["rnn_input"] = F.relu(apply_linear(weights["fc1"], x))
    h = _gru_over_time(weights["rnn_input"], weights["rnn_hidden"], inputs["rnn_input"], hidden)
    inputs["rnn_hidden"] = inputs["fc2"] = h
    inputs["fc3"] = F.relu(apply_linear(weights["fc2"], h))
    inputs["fc4"] = F.relu(apply_linear(weights["fc3"], inputs["fc3"]))
    return Unrolled(apply_linear(weights["fc4"], inputs["fc4"]), inputs)


def step(
    weights: Weights, x: Float[Tensor, "N B I"], hidden: Float[Tensor, "N B H"]
) -> tuple[Float[Tensor, "N B A"], Float[Tensor, "N B H"]]:
    """One time step, for acting: q_values and the next hidden state."""
    hidden_dim = hidden.shape[-1]
    x = F.relu(apply_linear(weights["fc1"], x))
    gate_x, gate_h = apply_linear(weights["rnn_input"], x), apply_linear(weights["rnn_hidden"], hidden)
    r, z = torch.sigmoid(gate_x[..., : 2 * hidden_dim] + gate_h[..., : 2 * hidden_dim]).chunk(2, dim=-1)
    n = torch.tanh(torch.addcmul(gate_x[..., 2 * hidden_dim :], r, gate_h[..., 2 * hidden_dim :]))
    hidden = torch.lerp(n, hidden, z)
    x = F.relu(apply_linear(weights["fc2"], hidden))
    x = F.relu(apply_linear(weights["fc3"], x))
    return apply_linear(weights["fc4"], x), hidden
