"""An agent network over whole sequences, fc1 -> GRU -> fc2 -> fc3 -> fc4, in one kernel call each way (`network.c`).

At hidden sizes of 64 to 128 torch's own work between its operations takes as long as the products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from k24lab.ops import calls
from k24lab.ops.acting import LAYERS
from k24lab.ops.calls import Packed
from k24lab.ops.library import usable
from k24lab.ops.linear import LayerWeights

WIDEST = 32  # rows of a tile, as NARROW in common.h


class Seen(NamedTuple):
    """What goes into the layers behind the first one; kept for the backward pass and nowhere else."""

    fc1: Float[Tensor, "K H T R"]  # after its ReLU, as fc2 and fc3
    hidden: Float[Tensor, "K H T1 R"]  # before and after every step
    fc2: Float[Tensor, "K H T R"]
    fc3: Float[Tensor, "K H T R"]


def _layers(matrices: Sequence[Tensor], biases: Sequence[Tensor], packed: Sequence[Packed | None]) -> Any:
    """The layers as the kernels take them."""
    each = []
    for weight, bias, sparse in zip(matrices, biases, packed, strict=True):
        rows, inputs = weight.shape[1:]
        own = rows if len(bias) > 1 else 0
        each.append(calls.Layer(calls.Matrix.of(weight, sparse), bias.data_ptr(), own, rows, inputs))
    return (calls.Layer * len(each))(*each)


def _forward(
    x: Tensor, hidden: Tensor, packed: Sequence[Packed | None], parameters: Sequence[Tensor], seen: Seen | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Q-values, the last state, and if `seen` is to be filled in what the backward pass of the GRU needs."""
    (k, _, steps, rows), size, x = x.shape, hidden.shape[1], x.contiguous()
    q_values, last, gates = x.new_empty(k, parameters[5].shape[1], steps, rows), x.new_empty(k, size, rows), None
    if seen is not None:
        gates = x.new_empty(k, -(-rows // WIDEST) * WIDEST, steps, 4 * size)
    fc1, h, fc2, fc3 = seen or (None, None, None, None)
    given = (k, steps, rows, _layers(parameters[:6], parameters[6:], packed), x, hidden.contiguous())
    calls.check(calls.call("k24_network", *given, last, fc1, h, gates, fc2, fc3, q_values))
    return q_values, last, gates


class _Network(torch.autograd.Function):
    """Every entry of a 2:4 matrix gets its gradient too, because masks learn from the entries that they drop."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Tensor, packed: Sequence[Packed | None], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        (k, _, steps, rows), size = x.shape, hidden.shape[1]
        shapes = ((k, size, steps, rows), (k, size, steps + 1, rows), (k, size, steps, rows), (k, size, steps, rows))
        seen = Seen(*(x.new_empty(shape) for shape in shapes))
        parameters = tuple(p.contiguous() for p in parameters)
        q_values, last, gates = _forward(x, hidden, packed, parameters, seen)
        ctx.packed = packed
        ctx.save_for_backward(x, gates, *seen, *parameters)
        ctx.mark_non_differentiable(*seen)
        ctx.set_materialize_grads(False)
        return (q_values, last, *seen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gates, fc1, h, fc2, fc3, *parameters = ctx.saved_tensors
        k, size, steps, rows = fc1.shape
        by_q = x.new_zeros(k, parameters[5].shape[1], steps, rows) if grads[0] is None else grads[0].contiguous()
        by_last = None if grads[1] is None else grads[1].contiguous()
        by_fc3, by_fc2, by_fc1 = (torch.empty_like(fc1) for _ in range(3))
        by_gates, by_side = (x.new_empty(k, 3 * size, steps, rows) for _ in range(2))  # of the GRU's two products
        by_hidden = x.new_empty(k, size, rows)
        layers = _layers(parameters[:6], parameters[6:], ctx.packed)
        given = (k, steps, rows, layers, fc1, h, gates, fc2, fc3, by_q, by_last)
        results = (by_fc3, by_fc2, by_gates, by_side, by_fc1, by_hidden)
        calls.check(calls.call("k24_network_backward", *given, *results))
        pairs = (
            (by_fc1, x),
            (by_gates, fc1),
            (by_side, h[:, :, :-1]),
            (by_fc2, h[:, :, 1:]),
            (by_fc3, fc2),
            (by_q, fc3),
        )
        by_matrix, by_bias = zip(*(_layer_gradients(*pair) for pair in pairs), strict=True)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (parameters[0].mT.expand(k, -1, -1) @ by_fc1.flatten(2)).view_as(x)
        by_parameter = (g.sum_to_size(p.shape) for g, p in zip(by_matrix + by_bias, parameters, strict=True))
        return by_x, by_hidden, None, *by_parameter


def _layer_gradients(
    by_y: Float[Tensor, "K out T R"], x: Float[Tensor, "K in T R"]
) -> tuple[Float[Tensor, "K out in"], Float[Tensor, "K out"]]:
    """Gradients to the matrices and biases of a layer."""
    return torch.bmm(by_y.flatten(2), x.flatten(2).mT), calls.row_sums(by_y)


def unroll(
    weights: Mapping[str, LayerWeights], x: Float[Tensor, "K I T R"], hidden: Float[Tensor, "K H R"]
) -> tuple[Tensor, Tensor, Seen | None] | None:
    """Q-values [K, A, T, R], the last state, and with gradients what the layers saw; None without the kernels."""
    if not usable(x):
        return None
    matrices, biases, packed = zip(*(weights[name] for name in LAYERS), strict=True)
    if torch.is_grad_enabled():
        q_values, last, *seen = _Network.apply(x, hidden, packed, *matrices, *biases)
        return q_values, last, Seen(*seen)
    q_values, last, _ = _forward(x, hidden, packed, [p.contiguous() for p in (*matrices, *biases)])
    return q_values, last, None
