"""What 2:4 can save at most: multiply-adds and bytes of the agent network, layer by layer and for a whole team.

Everything here is counted, nothing measured. One multiply-add is one weight times one input (2 FLOP), per agent and
environment step; biases, activations and the GRU's elementwise gates are left out of the multiply-adds (they cost the
same with and without masks) and are in the bytes.
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
STORAGES = (
    "one shared dense network",
    "a packed 2:4 network each",
    "shared weights + patterns",
    "a dense network each",
)

# Weight shapes (rows, columns) must be multiples of these (torch.sparse, `_DTYPE_SHAPE_CONSTRAINTS` of both backends).
KERNEL_TILES = {
    ("cutlass", "fp16"): (32, 64),
    ("cutlass", "int8"): (16, 128),
    ("cusparselt", "fp16"): (16, 16),
    ("cusparselt", "int8"): (32, 32),
}


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
    """The matrices of fc1 -> GRU -> fc2 -> fc3 -> fc4; the GRU has one for its input and one for its hidden state.

    Raises:
        ConfigError: a size below 1.
    """
    for name, value in {"obs_dim": obs_dim, "hidden_dim": hidden_dim, "n_actions": n_actions}.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")
    return (
        Layer("fc1", "fc", hidden_dim, obs_dim),
        Layer("GRU input", "gru", 3 * hidden_dim, hidden_dim),
        Layer("GRU hidden", "gru", 3 * hidden_dim, hidden_dim),
        Layer("fc2", "fc", hidden_dim, hidden_dim),
        Layer("fc3", "fc", hidden_dim, hidden_dim),
        Layer("fc4", "fc", n_actions, hidden_dim),
    )


def multiply_add_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """One row per choice of masked layers (`none`, `fc`, `all`) and layer.

    Columns: masked, layer, kind, multiply_adds (executed, per agent step), share (of the dense network's).
    """
    total = sum(layer.weights for layer in layers)
    rows = [
        {"masked": masked, "layer": layer.name, "kind": layer.kind, "multiply_adds": executed}
        for masked, kinds in MASKED_KINDS.items()
        for layer in layers
        for executed in [layer.kept if layer.kind in kinds else layer.weights]
    ]
    table = pd.DataFrame(rows)
    return table.assign(share=table["multiply_adds"] / total)


def masked_share(layers: Sequence[Layer], masked: str) -> float:
    """Share of the dense multiply-adds that is in masked layers, in [0, 1]."""
    kinds = _masked_kinds(masked)
    return sum(layer.weights for layer in layers if layer.kind in kinds) / sum(layer.weights for layer in layers)


def speedup_bound(layers: Sequence[Layer], masked: str, *, padded: bool = False) -> float:
    """Most that 2:4 can gain on the whole network: Amdahl's law with a factor of 2 on the masked share s.

    1 / ((1 - s) + s / 2). With `padded`, dense over executed multiply-adds instead: the zeros that fill a last group
    are multiplied too, so this is a little less (obs_dim 21: 12 of 21 multiply-adds per row stay, not 10.5).
    """
    if padded:
        kinds = _masked_kinds(masked)
        executed = sum(layer.kept if layer.kind in kinds else layer.weights for layer in layers)
        return sum(layer.weights for layer in layers) / executed
    share = masked_share(layers, masked)
    return 1.0 / ((1.0 - share) + share * KEPT / GROUP)


def bound_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """One row per choice of masked layers: masked, masked_share, bound (Amdahl), bound_padded (as executed)."""
    rows = [
        {
            "masked": masked,
            "masked_share": masked_share(layers, masked),
            "bound": speedup_bound(layers, masked),
            "bound_padded": speedup_bound(layers, masked, padded=True),
        }
        for masked in MASKED_KINDS
    ]
    return pd.DataFrame(rows)


def team_bytes(layers: Sequence[Layer], n_agents: int, storage: str, dtype: str = "fp16", masked: str = "all") -> int:
    """Bytes of the weights and biases of a team.

    - one shared dense network: what full parameter sharing stores; no masks.
    - a packed 2:4 network each: values and 2-bit indices per agent; layers without masks and all biases once.
    - shared weights + patterns: the dense weights once, 3 bits per group and agent; unpacked before use.
    - a dense network each: no sharing.

    Raises:
        ConfigError: unknown `storage`, `dtype` or `masked`, or fewer than one agent.
    """
    if storage not in STORAGES:
        raise ConfigError(unknown("storage", storage, STORAGES))
    if dtype not in DTYPE_BYTES:
        raise ConfigError(unknown("dtype", dtype, DTYPE_BYTES))
    if n_agents < 1:
        raise ConfigError(f"n_agents = {n_agents}: must be at least 1")
    size, kinds = DTYPE_BYTES[dtype], _masked_kinds(masked)
    sparse = [layer for layer in layers if layer.kind in kinds]
    dense = sum(layer.dense_bytes(size) for layer in layers)
    biases = sum(layer.out_features for layer in layers) * size
    if storage == "one shared dense network":
        return dense + biases
    if storage == "a dense network each":
        return n_agents * (dense + biases)
    if storage == "shared weights + patterns":
        return dense + biases + n_agents * sum(layer.pattern_bytes() for layer in sparse)
    unmasked = dense - sum(layer.dense_bytes(size) for layer in sparse)
    return unmasked + biases + n_agents * sum(layer.packed_bytes(size) for layer in sparse)


def team_memory(layers: Sequence[Layer], n_agents: Sequence[int], dtype: str, masked: str = "all") -> pd.DataFrame:
    """One row per storage and team size: storage, n_agents, dtype, masked, bytes."""
    rows = [
        {
            "storage": s,
            "n_agents": n,
            "dtype": dtype,
            "masked": masked,
            "bytes": team_bytes(layers, n, s, dtype, masked),
        }
        for s in STORAGES
        for n in n_agents
    ]
    return pd.DataFrame(rows)


def kernel_shape(out_features: int, in_features: int, backend: str, dtype: str = "fp16") -> tuple[int, int]:
    """Weight shape after padding with zeros to what the GPU kernel accepts; torch pads activations, never weights.

    Raises:
        ConfigError: a size below 1, or a backend and dtype without a 2:4 kernel (fp32 would be 1:2).
    """
    if out_features < 1 or in_features < 1:
        raise ConfigError(f"weight shape ({out_features}, {in_features}): both must be at least 1")
    if (backend, dtype) not in KERNEL_TILES:
        allowed = ("/".join(key) for key in KERNEL_TILES)
        raise ConfigError(unknown("2:4 kernel", f"{backend}/{dtype}", allowed))
    rows, columns = KERNEL_TILES[backend, dtype]
    return -(-out_features // rows) * rows, -(-in_features // columns) * columns


def _masked_kinds(masked: str) -> frozenset[str]:
    if masked not in MASKED_KINDS:
        raise ConfigError(unknown("choice of masked layers", masked, MASKED_KINDS))
    return MASKED_KINDS[masked]


def _bytes(bits: int) -> int:
    return -(-bits // 8)
