"""What the kernels compute, on torch tensors. Activations are [K, features, columns] for K networks, see `common.h`."""

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


Fields = list[int | None]  # of a struct of the kernels, which hold addresses and whole numbers only, all of 8 bytes


def structs(each: Sequence[Fields]) -> Any:
    """Structs of one kind side by side; ctypes' own classes for them would take longer than a small kernel."""
    fields = [field or 0 for own in each for field in own]
    return (c_int64 * len(fields))(*fields)


def addresses(tensors: Sequence[Tensor | None]) -> Fields:
    """Where tensors lie; they must be contiguous, and held until the kernel returns."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def matrix(weight: Float[Tensor, "Kw rows columns"] | None, packed: Packed | None, stride: int = 0) -> Fields:
    """The struct `matrix` of `common.h`: matrices of all networks, or one for all; those that are 2:4 also packed."""
    where: Fields = [None] * 4 if packed is None else [*addresses(packed), packed.values.shape[3]]
    return [*addresses([weight]), stride, *where]


def layer(
    weight: Float[Tensor, "Kw out in"], bias: Float[Tensor, "Kb out"] | None, packed: Packed | None, *grads: Tensor
) -> Fields:
    """The struct `layer` of `common.h`, with or without gradients to its matrix and its bias."""
    networks, rows, inputs = weight.shape
    stride, own = 0 if networks == 1 else rows * inputs, 0 if bias is None or bias.shape[0] == 1 else rows
    grad_weight, grad_bias = addresses(grads) or (None, None)
    return [*matrix(weight, packed, stride), *addresses([bias]), own, rows, inputs, grad_weight, grad_bias]


def call(name: str, *arguments: Any) -> int | None:
    """Call a kernel: tensors are handed over as addresses, whole numbers as int64, floats as such."""
    lib = library()
    assert lib is not None, "the kernels are not built"
    function = getattr(lib, name)
    if function.argtypes is None:  # declared at the first call: ctypes then converts twice as fast
        function.argtypes = [{int: c_int64, float: c_float}.get(type(a), c_void_p) for a in arguments]
    return function(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def check(code: int | None) -> None:
    """Raise what a kernel reports that found no memory."""
    if code:
        raise MemoryError("no memory left for the kernels' scratch space")


def _empty(weight: Float[Tensor, "K rows columns"]) -> Packed:
    k, rows, columns = weight.shape
    shape, cap = (k, -(-columns // CHUNK), rows), -(-min(columns, CHUNK) // 4) * 2
    return Packed(
        weight.new_empty(*shape, cap),
        weight.new_empty(*shape, cap, dtype=torch.uint8),
        weight.new_empty(shape, dtype=torch.int32),
    )


def pack_all(weights: Sequence[Float[Tensor, "_ _ _"]]) -> list[Packed]:
    """Pack the matrices of all layers, each [K, out, in] or [1, out, in] for all networks.

    Raises:
        ValueError: more than two values in a group of four inputs.
    """
    weights, packed = [weight.contiguous() for weight in weights], [_empty(weight) for weight in weights]
    layers = [layer(w, None, p) for w, p in zip(weights, packed, strict=True)]
    bad = call("k24_pack", max(map(len, weights)), len(layers), structs(layers))
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
    sizes = (k, rows, inputs, columns, structs([matrix(None, packed)]))
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
