"""`draw_masks` and `argmax_masks` of whole networks in C: the numbers of torch without its many small passes."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from k24lab.core.patterns import n_groups
from k24lab.ops import calls as ops, library as kernels

if TYPE_CHECKING:
    from k24lab.core.layers import SemiStructuredLinear24

Layers = Sequence["SemiStructuredLinear24"]
Limits = tuple[float, float, float]  # logit_scale, the smallest mean score, the score of padding


def possible(layers: Layers, noise: str) -> bool:
    """Whether the kernels know these layers' scores."""
    config = layers[0].config
    powers = {config.score_weight_power, config.score_ema_power}
    given = (layers[0].weight, layers[0].hetero_alpha)
    return "literal" not in (noise, config.noise) and powers <= {0.0, 1.0} and all(map(kernels.usable, given))


def _with_weight(layer: "SemiStructuredLinear24") -> bool:
    return layer.config.score_weight_power == 1


def _ema(layer: "SemiStructuredLinear24") -> Tensor | None:
    return layer.ema_tracker.ema_activation if layer.config.score_ema_power else None


def _offsets(layers: Layers) -> list[int]:
    """First group of each layer, and at the end the number of all."""
    sizes = (layer.out_features * n_groups(layer.in_features) for layer in layers)
    return list(itertools.accumulate(sizes, initial=0))


def _scores(layers: Layers, limits: Limits) -> tuple[Float[Tensor, "M groups 4"], list[Tensor]]:
    """Scores of all layers, and the scale of each."""
    *offsets, total = _offsets(layers)
    grouped = layers[0].weight.new_empty(layers[0].n_masks, total, 4)
    scales = [
        ops.scores(layer.weight, layer.hetero_alpha, _ema(layer), _with_weight(layer), limits, grouped, offset)
        for layer, offset in zip(layers, offsets, strict=True)
    ]
    return grouped, scales


class _Draw(torch.autograd.Function):
    """Masks with the gradient of the expected masks; their law, which moves |W| with score_gradient "all" only."""

    @staticmethod
    def forward(
        ctx: Any, layers: Layers, limits: Limits, temperature: float, uniform: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grouped, scales = _scores(layers, limits)
        mask, probs, index = ops.draw(grouped, temperature, uniform, law=True)
        assert probs is not None
        ctx.layers, ctx.temperature = layers, temperature
        ctx.save_for_backward(probs, *scales, *parameters)
        # Copies: a layer on its own moves its running activations before the backward pass.
        ctx.emas = [None if (ema := _ema(layer)) is None else ema.clone() for layer in layers]
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return mask, probs, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        probs, *rest = ctx.saved_tensors
        n = len(ctx.layers)
        each = zip(
            ctx.layers, rest[:n], rest[n : 2 * n], rest[2 * n :], ctx.emas, _offsets(ctx.layers)[:-1], strict=True
        )
        by_both = ops.draw_backward(probs, ctx.temperature, grads[0], grads[1])
        kind = ctx.layers[0].config.score_gradient
        for_weight = by_both if kind == "all" else None
        if kind == "td" and grads[0] is not None:
            for_weight = by_both if grads[1] is None else ops.draw_backward(probs, ctx.temperature, grads[0], None)
        by_weights, by_alphas = [], []
        for layer, scale, weight, alpha, ema, offset in each:
            given = (weight, alpha, ema, _with_weight(layer), scale, offset)
            by_alpha, by_weight = ops.scores_backward(*given, by_both, for_weight)
            by_weights.append(by_weight)
            by_alphas.append(by_alpha)
        return (None, None, None, None, *by_weights, *by_alphas)


def draw(
    layers: Layers, limits: Limits, temperature: float, uniform: Float[Tensor, "M groups"] | None
) -> tuple[Float[Tensor, "M groups 4"], Float[Tensor, "6 M groups"], Int[Tensor, "M groups"]]:
    """Masks of all groups, their law and pattern; the best ones without `uniform`."""
    # Weights that the scores do not teach must not make the masks depend on them.
    taught = _with_weight(layers[0]) and layers[0].config.score_gradient != "alpha"
    weights = [layer.weight if taught else layer.weight.detach() for layer in layers]
    parameters = [*weights, *(layer.hetero_alpha for layer in layers)]
    return _Draw.apply(layers, limits, temperature, uniform, *parameters)


def argmax(layers: Layers, limits: Limits) -> Float[Tensor, "M groups 4"]:
    """The best masks of all groups."""
    return ops.draw(_scores(layers, limits)[0], 1.0, None, law=False)[0]
