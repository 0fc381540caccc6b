"""What the kernels compute, on torch tensors. Activations are [K, features, columns] for K networks, see `common.h`."""

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from k24lab.ops.library import library

CHUNK = 128  # as in common.h


class Packed(NamedTuple):
    """Sparse matrices [K, rows, columns], cut into chunks of CHUNK columns: what is kept of each row, and where."""

    values: Float[Tensor, "K chunks rows cap"]
    places: UInt8[Tensor, "K chunks rows cap"]
    counts: Int[Tensor, "K chunks rows"]


class Matrix(ctypes.Structure):
    """Matrices of all networks, or one for all, as the kernels take them: dense, and once more packed where 2:4."""

    _fields_ = [
        ("dense", c_void_p),
        ("stride", c_int64),
        *((name, c_void_p) for name in ("values", "places", "counts")),
        ("cap", c_int64),
    ]

    @classmethod
    def of(cls, weight: Float[Tensor, "Kw rows columns"], packed: Packed | None) -> "Matrix":
        """The addresses of contiguous matrices, which must be held elsewhere."""
        stride = 0 if len(weight) == 1 else weight.stride(0)
        if packed is None:
            return cls(weight.data_ptr(), stride)
        return cls(weight.data_ptr(), stride, *(part.data_ptr() for part in packed), packed.values.shape[3])


class Layer(ctypes.Structure):
    """A layer of a network (`network.c`)."""

    _fields_ = [("matrix", Matrix), ("bias", c_void_p), *((n, c_int64) for n in ("bias_stride", "rows", "inputs"))]


def _call(name: str, *arguments: Any) -> int | None:
    """Call a kernel: tensors are handed over as addresses, whole numbers as int64, floats as such."""
    lib = library()
    assert lib is not None, "the kernels are not built"
    function = getattr(lib, name)
    if function.argtypes is None:  # declared at the first call: ctypes then converts twice as fast
        kinds = {int: c_int64, float: c_float, Matrix: ctypes.POINTER(Matrix)}
        function.argtypes = [kinds.get(type(a), c_void_p) for a in arguments]
    return function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def _check(code: int | None) -> None:
    if code:
        raise MemoryError("no memory left for the kernels' scratch space")


def _empty(k: int, rows: int, columns: int, cap: int) -> Packed:
    shape = (k, -(-columns // CHUNK), rows)
    return Packed(
        torch.empty(*shape, cap), torch.empty(*shape, cap, dtype=torch.uint8), torch.empty(shape, dtype=torch.int32)
    )


def pack(weight: Float[Tensor, "K out in"]) -> Packed:
    """Pack matrices whose groups of four inputs hold at most two values; raises ValueError for others."""
    k, rows, columns = weight.shape
    packed = _empty(k, rows, columns, cap := -(-min(columns, CHUNK) // 4) * 2)
    if _call("k24_pack", k, rows, columns, cap, weight.contiguous(), *packed):
        raise ValueError(f"weight of shape {tuple(weight.shape)} is not 2:4: too many values in a row")
    return packed


def matmul(
    packed: Packed,
    x: Float[Tensor, "K in columns"],
    bias: Float[Tensor, "Kb out"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "K out columns"]:
    """`W x + bias`, or the positive part of it."""
    x = x if x.stride(2) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    (k, inputs, columns), rows = x.shape, packed.counts.shape[2]
    if len(packed.counts) != k:
        raise ValueError(f"{len(packed.counts)} packed matrices for {k} networks")
    y = x.new_empty(k, rows, columns)
    per_bias = 0 if bias is None or len(bias) == 1 else rows
    matrix = Matrix(None, 0, *(part.data_ptr() for part in packed), packed.values.shape[3])
    sizes = (k, rows, inputs, columns, matrix)
    _check(_call("k24_matmul", *sizes, x, x.stride(0), x.stride(1), bias, per_bias, int(relu), y))
    return y


def row_sums(x: Float[Tensor, "K F T R"]) -> Float[Tensor, "K F"]:
    """Sums over all columns."""
    sums = x.new_empty(x.shape[:2])
    _call("k24_row_sums", sums.numel(), x.shape[2] * x.shape[3], x, sums)
    return sums


def abs_sum(x: Float[Tensor, "K in columns"], weight: Float[Tensor, "K columns"]) -> Float[Tensor, "K in"]:
    """Sums of |x| over the columns, weighted."""
    x = x if x.stride(2) == 1 else x.contiguous()
    sums = x.new_empty(x.shape[:2])
    _call("k24_abs_sum", *x.shape, x, x.stride(0), x.stride(1), weight.contiguous(), sums)
    return sums


def draw(
    scores: Float[Tensor, "M groups 4"], temperature: float, uniform: Float[Tensor, "M groups"] | None, with_probs: bool
) -> tuple[Float[Tensor, "M groups 4"], Float[Tensor, "6 M groups"] | None, Int[Tensor, "M groups"]]:
    """Masks, distribution (if asked for or sampled from) and pattern of each group; the best one without `uniform`."""
    scores = scores.contiguous()
    index = torch.empty(scores.shape[:2], dtype=torch.int32)
    probs = scores.new_empty(6, *index.shape) if with_probs or uniform is not None else None
    mask = torch.empty_like(scores)
    _call("k24_draw", index.numel(), scores, float(temperature), uniform, index, mask, probs)
    return mask, probs, index


def draw_backward(
    probs: Float[Tensor, "6 M groups"],
    temperature: float,
    grad_mask: Float[Tensor, "M groups 4"] | None,
    grad_probs: Float[Tensor, "6 M groups"] | None,
) -> Float[Tensor, "M groups 4"]:
    """Gradient to the scores, straight-through: that of the expected mask and of the distribution."""
    grad_mask = probs.new_zeros(*probs.shape[1:], 4) if grad_mask is None else grad_mask.contiguous()
    grad_probs = None if grad_probs is None else grad_probs.contiguous()
    grad_scores = torch.empty_like(grad_mask)
    _call("k24_draw_backward", probs[0].numel(), float(temperature), probs, grad_mask, grad_probs, grad_scores)
    return grad_scores


def scores(
    weight: Float[Tensor, "out in"],
    alpha: Float[Tensor, "M out in"],
    ema: Float[Tensor, "Me in"] | None,
    with_weight: bool,
    limits: tuple[float, float, float],
    into: Float[Tensor, "M groups 4"],
    offset: int,
) -> Float[Tensor, " M"]:
    """Write one layer's normalised scores into the groups of all layers, from `offset` on; returns their scale.

    Args:
        ema: running activations, or None where the score leaves them out.
        with_weight: whether |W| is part of the score.
        limits: logit_scale, the smallest mean score, the score of padding.
    """
    scale, weight, alpha = torch.empty(len(alpha)), weight.contiguous(), alpha.contiguous()
    given = (*alpha.shape, weight, alpha, ema, _per_mask(ema), int(with_weight), *map(float, limits))
    _call("k24_scores", *given, into.shape[1], offset, into, scale)
    return scale


def scores_backward(
    weight: Float[Tensor, "out in"],
    alpha: Float[Tensor, "M out in"],
    ema: Float[Tensor, "Me in"] | None,
    with_weight: bool,
    scale: Float[Tensor, " M"],
    offset: int,
    grad_scores: Float[Tensor, "M groups 4"],
    for_weight: Float[Tensor, "M groups 4"] | None,
) -> tuple[Float[Tensor, "M out in"], Float[Tensor, "out in"] | None]:
    """Gradients to alpha from `grad_scores`, and to the weight from `for_weight` (None: no gradient)."""
    weight, alpha = weight.contiguous(), alpha.contiguous()
    grad_alpha = torch.empty_like(alpha)
    grad_weight = None if for_weight is None or not with_weight else torch.empty_like(weight)
    given = (*alpha.shape, weight, alpha, ema, _per_mask(ema), int(with_weight), scale, grad_scores.shape[1], offset)
    _call("k24_scores_backward", *given, grad_scores, for_weight, grad_alpha, grad_weight)
    return grad_alpha, grad_weight


def _per_mask(ema: Tensor | None) -> int:
    """Floats between the rows of two masks, 0 where one row serves all."""
    return 0 if ema is None or len(ema) == 1 else ema.shape[1]
