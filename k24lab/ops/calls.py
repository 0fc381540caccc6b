"""What the kernels compute, on torch tensors. Activations are [K, features, columns] for K networks, see `common.h`."""

import ctypes
from collections.abc import Sequence
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

    _fields_ = [
        ("matrix", Matrix),
        ("bias", c_void_p),
        *((name, c_int64) for name in ("bias_stride", "rows", "inputs")),
        *((name, c_void_p) for name in ("by_weight", "by_bias")),
    ]


class Drawn(ctypes.Structure):
    """A layer whose masks are drawn (`masks.c`)."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "alpha", "ema")),
        *((name, c_int64) for name in ("ema_stride", "with_weight", "rows", "columns")),
        *((name, c_void_p) for name in ("mask", "by_alpha", "by_weight")),
    ]


class Seen(ctypes.Structure):
    """A weight seen through masks (`masks.c`)."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "mask", "product", "by_weight", "by_mask")),
        *((name, c_int64) for name in ("masks", "size")),
    ]


def call(name: str, *arguments: Any) -> int | None:
    """Call a kernel: tensors are handed over as addresses, whole numbers as int64, floats as such."""
    lib = library()
    assert lib is not None, "the kernels are not built"
    function = getattr(lib, name)
    if function.argtypes is None:  # declared at the first call: ctypes then converts twice as fast
        kinds = {int: c_int64, float: c_float, Matrix: ctypes.POINTER(Matrix)}
        function.argtypes = [kinds.get(type(a), c_void_p) for a in arguments]
    return function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def check(code: int | None) -> None:
    """Raise what a kernel reports that found no memory."""
    if code:
        raise MemoryError("no memory left for the kernels' scratch space")


def _empty(weight: Float[Tensor, "K rows columns"]) -> Packed:
    k, rows, columns = weight.shape
    shape, cap = (k, -(-columns // CHUNK), rows), -(-min(columns, CHUNK) // 4) * 2
    return Packed(
        torch.empty(*shape, cap), torch.empty(*shape, cap, dtype=torch.uint8), torch.empty(shape, dtype=torch.int32)
    )


def pack_all(weights: Sequence[Float[Tensor, "K _ _"]]) -> list[Packed]:
    """Pack matrices [K, out, in] whose groups of four inputs hold at most two values; raises ValueError for others."""
    weights, packed = [weight.contiguous() for weight in weights], [_empty(weight) for weight in weights]
    layers = [Layer(Matrix.of(w, p), None, 0, *w.shape[1:]) for w, p in zip(weights, packed, strict=True)]
    bad = call("k24_pack", len(weights[0]), len(layers), (Layer * len(layers))(*layers))
    if bad:
        raise ValueError(f"weight of shape {tuple(weights[bad - 1].shape)} is not 2:4: too many values in a row")
    return packed


def pack(weight: Float[Tensor, "K out in"]) -> Packed:
    """Pack the matrices of one layer."""
    return pack_all([weight])[0]


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
    check(call("k24_matmul", *sizes, x, x.stride(0), x.stride(1), bias, per_bias, int(relu), y))
    return y


def abs_sum(x: Float[Tensor, "K in columns"], weight: Float[Tensor, "K columns"]) -> Float[Tensor, "K in"]:
    """Sums of |x| over the columns, weighted."""
    x = x if x.stride(2) == 1 else x.contiguous()
    sums = x.new_empty(x.shape[:2])
    call("k24_abs_sum", *x.shape, x, x.stride(0), x.stride(1), weight.contiguous(), sums)
    return sums


def pairs(probs: Float[Tensor, "6 M groups"]) -> Float[Tensor, ""]:
    """Sum over groups and ordered pairs of masks of pi_a . pi_b."""
    result = probs.new_empty(())
    call("k24_pairs", *probs.shape[1:], probs.contiguous(), result)
    return result


def pairs_backward(probs: Float[Tensor, "6 M groups"], factor: float) -> Float[Tensor, "6 M groups"]:
    """Its gradient, times `factor`."""
    probs = probs.contiguous()
    grad = torch.empty_like(probs)
    call("k24_pairs_backward", *probs.shape[1:], probs, factor, grad)
    return grad


def best(scores: Float[Tensor, "M groups 4"]) -> Float[Tensor, "M groups 4"]:
    """The best mask of each group."""
    scores, mask = scores.contiguous(), torch.empty_like(scores, memory_format=torch.contiguous_format)
    call("k24_best", scores.numel() // 4, scores, mask)
    return mask
