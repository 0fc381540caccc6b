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
from k24lab.ops.library import threads, usable
from k24lab.ops.linear import LayerWeights

WIDEST = 32  # rows of a tile, as NARROW in common.h


class Seen(NamedTuple):
    """What goes into the layers behind the first one; kept for the backward pass and nowhere else."""

    fc1: Float[Tensor, "K H T R"]  # after its ReLU, as fc2 and fc3
    hidden: Float[Tensor, "K H T1 R"]  # before and after every step
    fc2: Float[Tensor, "K H T R"]
    fc3: Float[Tensor, "K H T R"]


def _layers(parameters: Sequence[Tensor], packed: Sequence[Packed | None], grads: Sequence[Tensor] = ()) -> Any:
    """The layers as the kernels take them, from their matrices, then their biases; likewise the gradients to these."""
    n = len(packed)
    each = zip(parameters[:n], parameters[n:], packed, strict=True)
    return calls.structs([calls.layer(*own, *grads[k::n]) for k, own in enumerate(each)])


def _threads(steps: int) -> int:
    """Threads for a call: a single time step is over before a second one has begun."""
    return threads() if steps > 1 else 1


def _forward(
    x: Tensor, hidden: Tensor, packed: Sequence[Packed | None], parameters: Sequence[Tensor], seen: Seen | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Q-values, the last state, and if `seen` is to be filled in what the backward pass of the GRU needs."""
    (k, _, steps, rows), size, x = x.shape, hidden.shape[1], x.contiguous()
    q_values, last, gates = x.new_empty(k, parameters[5].shape[1], steps, rows), x.new_empty(k, size, rows), None
    if seen is not None:
        gates = x.new_empty(k, -(-rows // WIDEST) * WIDEST, steps, 4 * size)
    if not rows:  # the kernels divide by their number
        return q_values, last, gates
    fc1, h, fc2, fc3 = seen or (None, None, None, None)
    given = (_threads(steps), k, steps, rows, _layers(parameters, packed), x, hidden.contiguous())
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
        x, parameters = x.contiguous(), tuple(p.contiguous() for p in parameters)
        q_values, last, gates = _forward(x, hidden, packed, parameters, seen)
        ctx.packed, ctx.threads = packed, _threads(steps)
        ctx.save_for_backward(x, gates, *seen, *parameters)
        ctx.mark_non_differentiable(*seen)
        ctx.set_materialize_grads(False)
        return (q_values, last, *seen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, gates, fc1, h, fc2, fc3, *parameters = ctx.saved_tensors
        k, size, steps, rows = fc1.shape
        grad_q = x.new_zeros(k, parameters[5].shape[1], steps, rows) if grads[0] is None else grads[0].contiguous()
        grad_last = None if grads[1] is None else grads[1].contiguous()
        grad_hidden, grad_x = x.new_empty(k, size, rows), torch.empty_like(x) if ctx.needs_input_grad[0] else None
        each = [[torch.zeros_like(p) for p in parameters] for _ in range(ctx.threads)]  # of each thread
        if not rows:
            return grad_x, grad_hidden, None, *each[0]
        layers = [_layers(parameters, ctx.packed, own) for own in each]
        given = (ctx.threads, k, steps, rows, layers[0], layers[-1], x, fc1, h, gates, fc2, fc3, grad_q, grad_last)
        calls.check(calls.call("k24_network_backward", *given, grad_hidden, grad_x))
        for own in each[1:]:
            torch._foreach_add_(each[0], own)
        return grad_x, grad_hidden, None, *each[0]


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
