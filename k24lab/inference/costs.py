"""Multiply-adds and bytes of the agent network, dense and 2:4, layer by layer and for a whole team.

Everything here is counted, nothing is measured. One multiply-add is one weight times one input (2 FLOP), per agent and
environment step. Biases, activations and the GRU's elementwise gates cost the same with and without masks: they are
left out of the multiply-adds, and the biases are included in the bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from k24lab.errors import ConfigError, unknown

GROUP = 4  # inputs per group, of which a 2:4 mask keeps KEPT
KEPT = 2
INDEX_BITS = 2  # per kept value, in the packed format (NVIDIA Ampere whitepaper, "sparse tensor cores")
PATTERN_BITS = 3  # per group, to name one of the six patterns without its values
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
MASKED_KINDS = {"none": frozenset[str](), "fc": frozenset({"fc"}), "all": frozenset({"fc", "gru"})}
KERNEL_TILE = 16  # 2:4 weights in 16 bit have multiples of these rows and columns (cuSPARSELt, as torch uses it)


@dataclass(frozen=True)
class Layer:
    """One weight matrix [out_features, in_features] and its bias; `kind` is `fc` or `gru`."""

    name: str
    kind: str
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        """Weights of the dense matrix, which are also its multiply-adds per agent step."""
        return self.out_features * self.in_features

    @property
    def groups(self) -> int:
        """Groups of four, the last one of a row padded with zeros where `in_features` is not a multiple of 4."""
        return self.out_features * -(-self.in_features // GROUP)

    @property
    def kept(self) -> int:
        """Values that 2:4 stores and multiplies: two per group, padding included, as the hardware does."""
        return KEPT * self.groups

    def dense_bytes(self, itemsize: int) -> int:
        """Bytes of the dense matrix without its bias."""
        return self.weights * itemsize

    def packed_bytes(self, itemsize: int) -> int:
        """Bytes of values and 2-bit indices: 9/16 of dense in 16 bit, 10/16 in 8 bit, 17/32 in 32 bit if unpadded."""
        return self.kept * itemsize + _bytes(self.kept * INDEX_BITS)

    def pattern_bytes(self) -> int:
        """Bytes of one agent's pattern indices, packed bit by bit."""
        return _bytes(self.groups * PATTERN_BITS)


def agent_layers(obs_dim: int, hidden_dim: int, n_actions: int) -> tuple[Layer, ...]:
    """The matrices of fc1 -> GRU -> fc2 -> fc3 -> fc4; the GRU has one for its input and one for its hidden state."""
    return (
        Layer("fc1", "fc", hidden_dim, obs_dim),
        Layer("GRU input", "gru", 3 * hidden_dim, hidden_dim),
        Layer("GRU hidden", "gru", 3 * hidden_dim, hidden_dim),
        Layer("fc2", "fc", hidden_dim, hidden_dim),
        Layer("fc3", "fc", hidden_dim, hidden_dim),
        Layer("fc4", "fc", n_actions, hidden_dim),
    )


def bound_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """The most that 2:4 can gain on the whole network: one row per choice of masked layers.

    Columns: masked, masked_share (s, of the dense multiply-adds), bound (Amdahl: 1 / ((1 - s) + s / 2)).
    """
    weights = pd.Series({layer.name: layer.weights for layer in layers})
    masked = {name: [layer.kind in kinds for layer in layers] for name, kinds in MASKED_KINDS.items()}
    shares = pd.Series({name: weights[kept].sum() / weights.sum() for name, kept in masked.items()})
    table = pd.DataFrame({"masked_share": shares, "bound": 1 / (1 - shares + shares * KEPT / GROUP)})
    return table.rename_axis("masked").reset_index()


def team_bytes(layers: Sequence[Layer], n_agents: int, dtype: str = "fp16") -> dict[str, int]:
    """Bytes of the weights and biases of a team with every layer masked, by the way to store them.

    - one shared dense network: what full parameter sharing stores; no masks.
    - a packed 2:4 network each: values and 2-bit indices per agent; all biases once.
    - shared weights + patterns: the dense weights once, 3 bits per group and agent; unpacked before use.
    - a dense network each: no sharing.
    """
    if dtype not in DTYPE_BYTES:
        raise ConfigError(unknown("dtype", dtype, DTYPE_BYTES))
    size = DTYPE_BYTES[dtype]
    biases = sum(layer.out_features for layer in layers) * size
    dense = sum(layer.dense_bytes(size) for layer in layers) + biases
    return {
        "one shared dense network": dense,
        "a packed 2:4 network each": biases + n_agents * sum(layer.packed_bytes(size) for layer in layers),
        "shared weights + patterns": dense + n_agents * sum(layer.pattern_bytes() for layer in layers),
        "a dense network each": n_agents * dense,
    }


def team_memory(layers: Sequence[Layer], n_agents: Sequence[int], dtype: str) -> pd.DataFrame:
    """One row per storage and team size: storage, n_agents, dtype, bytes."""
    rows = [(storage, n, dtype, size) for n in n_agents for storage, size in team_bytes(layers, n, dtype).items()]
    return pd.DataFrame(rows, columns=["storage", "n_agents", "dtype", "bytes"])


def kernel_shape(out_features: int, in_features: int, tile: int = KERNEL_TILE) -> tuple[int, int]:
    """Weight shape, padded with zeros to what a GPU's 2:4 kernel accepts; torch pads activations, never weights."""
    return -(-out_features // tile) * tile, -(-in_features // tile) * tile


def _bytes(bits: int) -> int:
    return -(-bits // 8)
