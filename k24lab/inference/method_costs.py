"""What each method costs: trained parameters, weights that an agent uses, multiply-adds and memory."""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from k24lab.inference.costs import DTYPE_BYTES, GROUP, KEPT, Layer, agent_layers
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.methods import METHODS, get_method
from k24lab.methods.base import LAYERS


def method_costs(
    obs_dim: int,
    hidden_dim: int,
    n_actions: int,
    n_agents: int,
    methods: Sequence[str] = tuple(METHODS),
    dtype: str = "fp16",
) -> pd.DataFrame:
    """One row per method with its default masks, for a team of `n_agents`.

    Columns: method; parameters (all that is trained, biases and mask coefficients included); kept (share of the matrix
    weights that an agent computes with, NaN where training decides it); multiply_adds (per agent and env step, as
    hardware executes them: 2:4 halves them, weights that are zero without structure are multiplied, and a gain is one
    for its neuron); memory_bytes (of the team's weights, masks and gains at inference in `dtype`: 2:4 packed, other
    masks one bit per weight and mask, what a hypernetwork makes as it is).
    """
    sizes = (obs_dim, hidden_dim, n_actions, n_agents)
    return pd.DataFrame([_costs(name, *sizes, DTYPE_BYTES[dtype]) for name in methods])


def _costs(
    name: str, obs_dim: int, hidden_dim: int, n_actions: int, n_agents: int, itemsize: int
) -> dict[str, str | int | float]:
    """The row of one method; `itemsize` are the bytes of a number."""
    method, config = get_method(name), build_config({"method": name, "hidden_dim": hidden_dim})
    input_dim = obs_dim + (n_agents if config.agent_id else 0)
    layers = dict(zip(LAYERS, agent_layers(input_dim, hidden_dim, n_actions), strict=True))
    masked = [layers[layer] for layer in method.masked_layers(config)]
    gains = LAYERS if method.has_gains else ()
    networks = {layer: n_agents if layer in method.own_layers else 1 for layer in LAYERS}
    n_masks = {"none": 0, "one": 1, "each": n_agents}[method.masks]
    numbers = sum(networks[layer] * (each.weights + each.out_features) for layer, each in layers.items())
    with torch.device("meta"):  # nothing is allocated
        agent = build_agent(config, input_dim, n_actions, n_agents)
    numbers += sum(2 * n_agents * layers[name].out_features for name in gains)
    two_four = method.pattern == "2:4"
    executed = sum(x.kept if two_four and x in masked else x.weights for x in layers.values())
    return {
        "method": name,
        "parameters": sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad),
        "kept": _kept(masked, _weights(layers.values()), two_four, method.kept),
        "multiply_adds": executed + sum(layers[name].out_features for name in gains),
        "memory_bytes": numbers * itemsize + _mask_bytes(masked, n_masks, two_four, itemsize),
    }


def _weights(layers: Iterable[Layer]) -> int:
    return sum(layer.weights for layer in layers)


def _kept(masked: Sequence[Layer], n_weights: int, two_four: bool, share: float | None) -> float:
    """Share of all weights that an agent computes with; of masked ones without 2:4 the method says which share."""
    if not masked:
        return 1.0
    if two_four:
        return 1 - sum(map(_dropped, masked)) / n_weights
    return float("nan") if share is None else 1 - (1 - share) * _weights(masked) / n_weights


def _dropped(layer: Layer) -> int:
    """Weights that a 2:4 mask drops; of a last group that is not full it keeps up to two of those that exist."""
    full, rest = divmod(layer.in_features, GROUP)
    return layer.out_features * (full * (GROUP - KEPT) + max(0, rest - KEPT))


def _mask_bytes(masked: Sequence[Layer], n_masks: int, two_four: bool, itemsize: int) -> int:
    """Bytes beyond the dense network: a packed matrix for each mask in place of the dense one, or a bit per weight."""
    if two_four:
        return sum(n_masks * layer.packed_bytes(itemsize) - layer.dense_bytes(itemsize) for layer in masked)
    return -(-n_masks * _weights(masked) // 8)
