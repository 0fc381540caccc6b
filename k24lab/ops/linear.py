"""Linear layers of K networks at once, with a matrix of each network or one for all.

Where the CPU kernels can be used a 2:4 matrix is packed once and only what it keeps is multiplied; torch computes the
same otherwise. Activations are [K, features, columns].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from k24lab.ops import calls
from k24lab.ops.library import usable


class LayerWeights(NamedTuple):
    """What a layer computes with: a matrix and a bias of each network, or one for all."""

    weight: Float[Tensor, "Kw out in"]
    bias: Float[Tensor, "Kb out"]
    packed: calls.Packed | None = None  # the matrices once more, if they are 2:4 and the CPU kernels can be used


def sparse_layers(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, LayerWeights]:
    """Weights of layers whose matrices are 2:4, from matrices [K, out, in] and biases [Kb, out]."""
    matrices = [weight.detach() for weight, _ in layers.values()]
    packed = calls.pack_all(matrices) if matrices and usable(matrices[0]) else [None] * len(matrices)
    return {name: LayerWeights(*layers[name], own) for name, own in zip(layers, packed, strict=True)}


def _linear(x: Tensor, weight: Tensor, bias: Tensor, packed: calls.Packed | None, relu: bool) -> Tensor:
    """`W x + b` or its positive part, without gradients."""
    if packed is not None:
        return calls.matmul(packed, x, bias, relu)
    y = torch.bmm(weight.expand(len(x), -1, -1), x)
    y += bias.unsqueeze(2)
    return y.relu_() if relu else y


class _Linear(torch.autograd.Function):
    """`W x + b` or its positive part; of a 2:4 matrix only what is kept is multiplied.

    Every entry of W gets its gradient all the same: masks learn from those they drop.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, packed: calls.Packed | None, relu: bool) -> Tensor:
        y = _linear(x, weight, bias, packed, relu)
        ctx.save_for_backward(x, weight, bias, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, y = ctx.saved_tensors
        grad = grads[0].contiguous() if y is None else torch.ops.aten.threshold_backward(grads[0], y, 0)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(weight.mT.expand(len(x), -1, -1), grad)
        grad_weight, grad_bias = torch.bmm(grad, x.mT), grad.sum(dim=2)
        return grad_x, grad_weight.sum_to_size(weight.shape), grad_bias.sum_to_size(bias.shape), None, None


def linear(layer: LayerWeights, x: Float[Tensor, "K in *columns"], relu: bool = False) -> Tensor:
    """`W x + b` of each network, [K, out, *columns], or its positive part."""
    # Without gradients autograd's own bookkeeping would cost acting dearly.
    compute = _Linear.apply if torch.is_grad_enabled() else _linear
    y = compute(x.flatten(2), layer.weight, layer.bias, layer.packed, relu)
    return y.unflatten(2, x.shape[2:])


def weighted_abs_sum(x: Float[Tensor, K in columns], weight: Float[Tensor, "K columns"]) -> Float[Tensor, "K in"]:
    """Sum of |x| over the columns with the given weights: the mean |x| where they add up to one."""
    return calls.abs_sum(x, weight) if usable(x) else torch.bmm(x.abs(), weight.unsqueeze(2)).squeeze(2)
