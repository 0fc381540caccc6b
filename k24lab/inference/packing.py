"""2:4 matrices in torch's semi-structured layout (values and metadata, as sparse tensor cores read them), and back.

Layout: that of CUTLASS (torch.sparse._semi_structured_conversions), for 16 and 8 bit numbers, packed on any device.
cuSPARSELt has a layout of its own, which it makes on the GPU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from k24lab.core.patterns import GROUP_SIZE
from k24lab.errors import ConfigError, unknown
from k24lab.inference.costs import kernel_shape

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
TILE_DTYPES = {"float16": "fp16", "bfloat16": "fp16", "int8": "int8"}  # names of `accounting.KERNEL_TILES`
MOST_PADDING = 16.0  # times the weights: beyond it a layer is too small for these kernels
PATTERN_BITS = 3


@dataclass(frozen=True)
class PackedMatrix:
    """One 2:4 matrix per mask; `shape` is that of the matrices before padding."""

    values: Shaped[Tensor, "M rows kept"]
    meta: Shaped[Tensor, "M rows words"]
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of values and metadata, padding included."""
        return self.values.nbytes + self.meta.nbytes


def check_24(weight: Shaped[Tensor, "M out in"], layer: str) -> None:
    """Refuse a matrix in which some group of four inputs keeps more than two weights.

    Raises:
        ConfigError: naming layer, mask, row and group.
    """
    groups = F.pad(weight, (0, -weight.shape[-1] % GROUP_SIZE)).unflatten(-1, (-1, GROUP_SIZE))
    kept = (groups != 0).sum(dim=-1)
    if bool((kept > 2).any()):
        mask, row, group = (kept > 2).nonzero()[0].tolist()
        raise ConfigError(
            f"layer {layer!r}, mask {mask}, row {row}, group {group} (inputs {4 * group} to {4 * group + 3}) keeps "
            f"{kept[mask, row, group]} weights; 2:4 allows two"
        )


def check_padding(n_weights: int, n_padded: int, what: str) -> None:
    """Refuse padding that would make matrices more than MOST_PADDING times larger.

    Raises:
        ConfigError: naming the matrices and both sizes.
    """
    if n_padded > MOST_PADDING * n_weights:
        raise ConfigError(
            f"{what} with {n_weights} weights would be padded to {n_padded}, more than {MOST_PADDING:.0f} times as "
            "many: 2:4 kernels of GPUs do not suit it"
        )


def to_dtype(weight: Float[Tensor, "*shape"], dtype: torch.dtype, what: str) -> Shaped[Tensor, "*shape"]:
    """The same numbers in another dtype, rounded; int8 takes whole numbers only (`quantise`).

    Raises:
        ConfigError: numbers that are not finite or do not fit.
    """
    cast = weight.to(dtype)
    fits = (cast == weight).all() if dtype == torch.int8 else cast.isfinite().all()
    if not fits:
        wanted = "whole numbers in [-127, 127] (quantise)" if dtype == torch.int8 else "finite ones"
        raise ConfigError(f"{what} has numbers that {str(dtype).removeprefix('torch.')} cannot hold: {wanted} only")
    return cast


def pack24(weight: Float[Tensor, "M out in"], dtype: str = "float16", layer: str = "weight") -> PackedMatrix:
    """Pack 2:4 matrices, padded with zeros to what CUTLASS's kernels accept.

    int8 takes whole numbers in [-127, 127] (`quantise`). The numbers are those of `dtype`: nothing else is lost.

    Raises:
        ConfigError: unknown dtype, a matrix that is not 2:4, numbers that the dtype cannot hold, or a matrix that
            padding would make MOST_PADDING times larger.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"{unknown('dtype', dtype, DTYPES)}; torch's 2:4 is 1:2 in float32")
    check_24(weight, layer)
    out_features, in_features = weight.shape[1:]
    rows, columns = kernel_shape(out_features, in_features, "cutlass", TILE_DTYPES[dtype])
    shape = (out_features, in_features)
    check_padding(out_features * in_features, rows * columns, f"layer {layer!r} of shape {shape}")
    whole = to_dtype(weight, DTYPES[dtype], f"layer {layer!r}")
    padded = F.pad(whole, (0, columns - in_features, 0, rows - out_features))
    packed = [sparse_semi_structured_from_dense_cutlass(matrix) for matrix in padded]
    values, meta = (torch.stack(parts) for parts in zip(*packed, strict=True))
    return PackedMatrix(values, meta, shape)


def unpack24(packed: PackedMatrix) -> Shaped[Tensor, "M out in"]:
    """The matrices again, without padding."""
    out_features, in_features = packed.shape
    pairs = zip(packed.values, packed.meta, strict=True)
    dense = torch.stack([sparse_semi_structured_to_dense_cutlass(values, meta) for values, meta in pairs])
    return dense[:, :out_features, :in_features]


def quantise(weight: Float[Tensor, "*M out in"]) -> tuple[Shaped[Tensor, "*M out in"], Float[Tensor, " out"]]:
    """Whole numbers in [-127, 127] and the scale of each row, the same for all masks: weight ≈ number * scale."""
    rows = weight.abs().amax(dim=-1)
    largest = rows.amax(dim=tuple(range(rows.dim() - 1))) if rows.dim() > 1 else rows
    scale = (largest / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale[:, None]).round().to(torch.int8), scale


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
