"""Recurrent agents: fc1 -> GRU -> fc2 -> fc3 -> fc4, one network for the team, seen through each agent's masks."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from k24lab.core.baselines import MagnitudeLinear24, ThresholdLinear
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks
from k24lab.marl.config import TrainingConfig
from k24lab.ops import calls as ops, library as kernels
from k24lab.ops.gru import batched_gru

LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
RNN_LAYERS = ("rnn_input", "rnn_hidden")
HEAD = "fc4"  # whose outputs are the Q-values


class LayerWeights(NamedTuple):
    """What a layer computes with: a matrix and a bias of each network, or one for all."""

    weight: Float[Tensor, "Kw out in"]
    bias: Float[Tensor, "Kb out"]
    packed: ops.Packed | None = None  # the matrices once more, if they are 2:4 and the CPU kernels can be used


Weights = Mapping[str, LayerWeights]


class DenseLinear(nn.Module):
    """`n_networks` independent dense layers (1: shared by all agents)."""

    def __init__(self, in_features: int, out_features: int, n_networks: int = 1):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(n_networks, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_networks, out_features).uniform_(-bound, bound))

    def effective(self) -> tuple[Float[Tensor, "K out in"], Float[Tensor, "K out"]]:
        """What each network computes with."""
        return self.weight, self.bias


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

    @property
    def threshold_layers(self) -> dict[str, ThresholdLinear]:
        """Kaleidoscope's layers, by name, in the order of the network."""
        return {n: layer for n, layer in self.layers.items() if isinstance(layer, ThresholdLinear)}

    def weights(self, masks: Mapping[str, Tensor] | None = None) -> dict[str, LayerWeights]:
        """Effective weights of all layers under the given masks [M, out, in] (one for each masked layer)."""
        effective = {}
        for name, layer in self.layers.items():
            if isinstance(layer, SemiStructuredLinear24):
                assert masks is not None, f"layer {name} needs a mask"
                weight = layer.weight * masks[name]
                packed = ops.pack(weight.detach()) if kernels.usable(weight) else None
                effective[name] = LayerWeights(weight, layer.bias.unsqueeze(0), packed)
            else:
                assert isinstance(layer, DenseLinear | MagnitudeLinear24 | ThresholdLinear)
                effective[name] = LayerWeights(*layer.effective())
        return effective

    @torch.no_grad()
    def argmax_weights(self) -> dict[str, LayerWeights]:
        """Effective weights of all layers under the argmax masks: of acting, evaluation and target networks."""
        layers = self.masked_layers
        return self.weights(dict(zip(layers, argmax_masks(list(layers.values())), strict=True)))

    def initial_hidden(self, n_networks: int, rows: int) -> Float[Tensor, "K H R"]:
        """Zeros, on the device and in the dtype of the network."""
        like = next(self.parameters())
        return torch.zeros(n_networks, self.hidden_dim, rows, device=like.device, dtype=like.dtype)


class K24RNNAgent(RNNAgent):
    """The design document's agent: fc1 to fc4 masked per agent, and with `mask_rnn` the GRU's matrices too."""

    def __init__(self, input_dim: int, n_actions: int, n_masks: int, config: TrainingConfig):
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


def build_agent(config: TrainingConfig, input_dim: int, n_actions: int, n_masks: int) -> RNNAgent:
    """The agent of the configured method; all have the same layers and sizes. `n_masks`: agents or unit types."""
    if config.masked:
        kind = K24TypeRNNAgent if config.per_type else K24RNNAgent
        return kind(input_dim, n_actions, n_masks, config)
    return RNNAgent(input_dim, n_actions, config.hidden_dim, partial(_baseline_layer, config, n_masks))


def _baseline_layer(config: TrainingConfig, n_masks: int, name: str, in_features: int, out_features: int) -> nn.Module:
    """The layer of that name of a method without 2:4 masks per agent."""
    if config.method == "magnitude24" and (config.mask_rnn or name not in RNN_LAYERS):
        return MagnitudeLinear24(in_features, out_features)
    if config.method == "kaleidoscope" and name not in RNN_LAYERS:
        return ThresholdLinear(in_features, out_features, n_masks)
    own = config.method == "nops" or (config.method == "multih" and name == HEAD)
    return DenseLinear(in_features, out_features, n_masks if own else 1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, packed: ops.Packed | None, relu: bool) -> Tensor:
    """`W x + b` or its positive part, without gradients."""
    if packed is not None:
        return ops.matmul(packed, x, bias, relu)
    y = torch.bmm(weight.expand(len(x), -1, -1), x)
    if kernels.usable(y):
        ops.add_bias(y, bias, relu)
        return y
    y += bias.unsqueeze(2)
    return y.relu_() if relu else y


class _Linear(torch.autograd.Function):
    """`W x + b` or its positive part; of a 2:4 matrix only what is kept is multiplied.

    Every entry of W gets its gradient all the same: masks learn from those they drop.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packed: ops.Packed | None, relu: bool) -> Tensor:
        y = _linear(x, weight, bias, packed, relu)
        ctx.sparse = packed is not None
        ctx.save_for_backward(x, weight, bias, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, y = ctx.saved_tensors
        grad = grads[0].contiguous() if y is None else torch.ops.aten.threshold_backward(grads[0], y, 0)
        by_x = None
        if ctx.needs_input_grad[0]:
            sparse = ctx.sparse and kernels.usable(grad)
            transposed = weight.mT.expand(len(x), -1, -1)
            by_x = ops.matmul(ops.pack_transposed(weight), grad) if sparse else torch.bmm(transposed, grad)
        by_weight, by_bias = torch.bmm(grad, x.mT), grad.sum(dim=2)
        return by_x, by_weight.sum_to_size(weight.shape), by_bias.sum_to_size(bias.shape), None, None


def apply_linear(layer: LayerWeights, x: Float[Tensor, "K in *columns"], relu: bool = False) -> Tensor:
    """`W x + b` of each network, [K, out, *columns], or its positive part."""
    compute = _Linear.apply if torch.is_grad_enabled() else _linear  # see batched_gru
    y = compute(x.flatten(2), layer.weight, layer.bias, layer.packed, relu)
    return y.unflatten(2, x.shape[2:])


class Unrolled(NamedTuple):
    """Q-values of whole sequences, and what went into each layer (for the running mean of activations)."""

    q_values: Float[Tensor, "K A T R"]
    inputs: dict[str, Float[Tensor, "K in T R"]]


def unroll(weights: Weights, x: Float[Tensor, "K I T R"], hidden: Float[Tensor, "K H R"]) -> Unrolled:
    """Run the team over whole sequences: every layer but the GRU's hidden side sees all time steps at once.

    Features come before time steps and rows, so that a weight meets all its inputs in one run of memory.
    """
    inputs = {"fc1": x}
    inputs["rnn_input"] = apply_linear(weights["fc1"], x, relu=True)
    side = weights["rnn_hidden"]
    gate_x = apply_linear(weights["rnn_input"], inputs["rnn_input"])
    inputs["rnn_hidden"] = inputs["fc2"] = batched_gru(gate_x, hidden, side.weight, side.bias, side.packed)
    inputs["fc3"] = apply_linear(weights["fc2"], inputs["fc2"], relu=True)
    inputs["fc4"] = apply_linear(weights["fc3"], inputs["fc3"], relu=True)
    return Unrolled(apply_linear(weights["fc4"], inputs["fc4"]), inputs)


def step(
    weights: Weights, x: Float[Tensor, "K I R"], hidden: Float[Tensor, "K H R"]
) -> tuple[Float[Tensor, "K A R"], Float[Tensor, "K H R"]]:
    """One time step, for acting: q_values and the next hidden state."""
    unrolled = unroll(weights, x.unsqueeze(2), hidden)
    return unrolled.q_values.squeeze(2), unrolled.inputs["fc2"].squeeze(2)
