"""What each method costs: trained parameters, weights that an agent uses, multiply-adds and memory."""

from collections.abc import Sequence

import pandas as pd

from k24lab.inference.costs import (
    DTYPE_BYTES,
    GROUP,
    KEPT,
    MASKED_KINDS,
    Layer,
    agent_layers,
    team_bytes,
)
from k24lab.lab.config import METHODS, Config, build_config

HEAD = "fc4"


def method_costs(
    obs_dim: int, hidden_dim: int, n_actions: int, n_agents: int, methods: Sequence[str] = METHODS, dtype: str = "fp16"
) -> pd.DataFrame:
    """One row per method with its default masks, for a team of `n_agents`.

    Columns: method; parameters (all that is trained, biases and mask coefficients included); kept (share of the matrix
    weights that an agent computes with, NaN where training decides it); multiply_adds (per agent and env step, as
    hardware executes them: 2:4 halves them, weights that are zero without structure are multiplied); memory_bytes (of
    the team's weights and masks at inference in `dtype`, 2:4 packed).

    Raises:
        ConfigError: a size below 1, an unknown method or dtype.
    """
    rows = []
    for method in methods:
        config = build_config({"method": method, "hidden_dim": hidden_dim})
        layers = agent_layers(obs_dim + (n_agents if config.agent_id else 0), hidden_dim, n_actions)
        rows.append(_costs(config, layers, n_agents, dtype))
    return pd.DataFrame(rows)


def _costs(config: Config, layers: Sequence[Layer], n_agents: int, dtype: str) -> dict[str, object]:
    method = config.method
    two_four = config.masked or method == "magnitude24"
    masked = ("all" if config.mask_rnn else "fc") if two_four or method == "kaleidoscope" else "none"
    in_masks = [layer for layer in layers if layer.kind in MASKED_KINDS[masked]]
    weights, biases = sum(layer.weights for layer in layers), sum(layer.out_features for layer in layers)
    head = next(layer for layer in layers if layer.name == HEAD)
    own_head = (n_agents - 1) * (head.weights + head.out_features) if method == "multih" else 0
    networks = n_agents if method == "nops" else 1
    coefficients = n_agents * sum(layer.weights for layer in in_masks) if config.learns_masks else 0
    dropped = sum(map(_dropped, in_masks)) if two_four else 0
    kept = float("nan") if method == "kaleidoscope" else 1 - dropped / weights
    return {
        "method": method,
        "parameters": networks * (weights + biases) + own_head + coefficients,
        "kept": kept,
        "multiply_adds": sum(layer.kept if two_four and layer in in_masks else layer.weights for layer in layers),
        "memory_bytes": _memory(config, layers, n_agents, dtype, masked, own_head),
    }


def _dropped(layer: Layer) -> int:
    """Weights that a 2:4 mask drops; of a last group that is not full it keeps up to two of those that exist."""
    full, rest = divmod(layer.in_features, GROUP)
    return layer.out_features * (full * (GROUP - KEPT) + max(0, rest - KEPT))


def _memory(config: Config, layers: Sequence[Layer], n_agents: int, dtype: str, masked: str, own_head: int) -> int:
    one_dense = team_bytes(layers, 1, "one shared dense network", dtype)
    if config.masked:
        return team_bytes(layers, n_agents, "a packed 2:4 network each", dtype, masked)
    if config.method == "magnitude24":
        return team_bytes(layers, 1, "a packed 2:4 network each", dtype, masked)
    if config.method == "kaleidoscope":  # a bit per weight and agent says what is zero
        bits = n_agents * sum(layer.weights for layer in layers if layer.kind in MASKED_KINDS[masked])
        return one_dense + -(-bits // 8)
    networks = n_agents if config.method == "nops" else 1
    return networks * one_dense + own_head * DTYPE_BYTES[dtype]
