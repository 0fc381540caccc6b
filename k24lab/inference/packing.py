"""How a file stores 2:4 matrices: pattern indices in three bits per group, weights in fewer bits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from k24lab.core.patterns import GROUP_SIZE, PATTERNS_24
from k24lab.errors import ConfigError
from k24lab.inference.costs import PATTERN_BITS


def patterns_of(mask: Float[Tensor, "M out in"], layer: str) -> UInt8[Tensor, "M out G"]:
    """Which of the six patterns each group of a mask is.

    Where the last group of a row is cut, the first pattern that agrees on the weights that exist. A ConfigError names
    layer, mask, row and group of a group that is none of the six.
    """
    groups = F.pad(mask, (0, -mask.shape[-1] % GROUP_SIZE), value=torch.nan).unflatten(-1, (-1, GROUP_SIZE)).cpu()
    agrees = torch.stack([((groups == groups.new_tensor(p)) | groups.isnan()).all(dim=-1) for p in PATTERNS_24], dim=-1)
    if not agrees.any(dim=-1).all():
        m, row, group = (~agrees.any(dim=-1)).nonzero()[0].tolist()
        values = [round(x, 4) for x in groups[m, row, group].tolist() if x == x]
        raise ConfigError(f"layer {layer!r}, mask {m}, row {row}, group {group} = {values} is not 2:4")
    return agrees.to(torch.uint8).argmax(dim=-1).to(torch.uint8)


def pack_patterns(index: UInt8[Tensor, "M out G"]) -> UInt8[Tensor, "M bytes"]:
    """Pattern indices in three bits each, a row of bytes per mask."""
    bits = index.flatten(1).unsqueeze(-1) >> torch.arange(PATTERN_BITS, dtype=torch.uint8) & 1
    flat = bits.flatten(1)
    flat = F.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    return (flat << torch.arange(8, dtype=torch.uint8)).sum(dim=-1, dtype=torch.uint8)


def unpack_patterns(packed: UInt8[Tensor, "M bytes"], out_features: int, n_groups: int) -> UInt8[Tensor, "M out G"]:
    """Undo `pack_patterns`."""
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)
    used = bits[:, : out_features * n_groups * PATTERN_BITS].unflatten(1, (out_features, n_groups, PATTERN_BITS))
    return (used << torch.arange(PATTERN_BITS, dtype=torch.uint8)).sum(dim=-1, dtype=torch.uint8)


def quantise(weight: Float[Tensor, "out in"]) -> tuple[Shaped[Tensor, "out in"], Float[Tensor, " out"]]:
    """Whole numbers in [-127, 127] (int8) and the scale of each row: weight ≈ number * scale."""
    scale = (weight.abs().amax(dim=-1) / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def to_dtype(weight: Float[Tensor, "out in"], dtype: torch.dtype, layer: str) -> Float[Tensor, "out in"]:
    """The same numbers in a floating-point dtype, rounded; those that it cannot hold are a ConfigError."""
    rounded = weight.to(dtype)
    if not rounded.isfinite().all():
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"layer {layer!r} has numbers that {name} cannot hold: the largest is {weight.abs().max():g}")
    return rounded
