"""2:4 masks of whole networks in C: the numbers of `k24lab.core.masks` without torch's many small passes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from k24lab.ops import calls
from k24lab.ops.library import usable

GROUP_SIZE = 4


class ScoredLayer(NamedTuple):
    """What the scores |W| * EMA * sigmoid(alpha) of a layer are made of."""

    weight: Float[Tensor, "out in"]
    alpha: Float[Tensor, "M out in"]
    ema: Float[Tensor, "Me in"] | None  # None: the score leaves running activations out
    with_weight: bool  # whether |W| is part of the score


class Limits(NamedTuple):
    """Constants of the normalised pattern logits."""

    logit_scale: float
    smallest_mean: float  # of the scores; smaller means count as this
    padding: float  # score of an entry that does not exist


Draw = tuple[Float[Tensor, "M groups 4"], Float[Tensor, "6 M groups"], Int[Tensor, "M groups"]]


def _offsets(layers: Sequence[ScoredLayer]) -> list[int]:
    """First group of each layer, and at the end the number of all."""
    sizes = (len(layer.weight) * -(-layer.weight.shape[1] // GROUP_SIZE) for layer in layers)
    return list(itertools.accumulate(sizes, initial=0))


def _scores(layers: Sequence[ScoredLayer], limits: Limits) -> tuple[Float[Tensor, "M groups 4"], list[Tensor]]:
    """Scores of all layers, and the scale of each."""
    *offsets, total = _offsets(layers)
    grouped = layers[0].weight.new_empty(len(layers[0].alpha), total, GROUP_SIZE)
    scales = [
        calls.scores(layer.weight, layer.alpha, layer.ema, layer.with_weight, limits, grouped, offset)
        for layer, offset in zip(layers, offsets, strict=True)
    ]
    return grouped, scales


class _Draw(torch.autograd.Function):
    """Masks with the gradient of the expected masks; their distribution, whose gradient moves |W| only with "all"."""

    @staticmethod
    def forward(
        ctx: Any,
        layers: Sequence[ScoredLayer],
        limits: Limits,
        temperature: float,
        uniform: Tensor | None,
        score_gradient: str,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grouped, scales = _scores(layers, limits)
        mask, probs, index = calls.draw(grouped, temperature, uniform, with_probs=True)
        assert probs is not None
        ctx.temperature, ctx.score_gradient, ctx.offsets = temperature, score_gradient, _offsets(layers)[:-1]
        ctx.save_for_backward(probs, *scales, *parameters)
        # Copies: a layer on its own moves its running activations before the backward pass.
        ctx.emas = [None if layer.ema is None else layer.ema.clone() for layer in layers]
        ctx.with_weight = [layer.with_weight for layer in layers]
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return mask, probs, index

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        probs, *rest = ctx.saved_tensors
        n = len(ctx.offsets)
        scales, weights, alphas = rest[:n], rest[n : 2 * n], rest[2 * n :]
        grad_scores = calls.draw_backward(probs, ctx.temperature, grads[0], grads[1])
        for_weight = grad_scores if ctx.score_gradient == "all" else None
        if ctx.score_gradient == "td" and grads[0] is not None:
            from_masks = None if grads[1] is None else calls.draw_backward(probs, ctx.temperature, grads[0], None)
            for_weight = grad_scores if from_masks is None else from_masks
        grad_weights, grad_alphas = [], []
        for weight, alpha, ema, with_weight, scale, offset in zip(
            weights, alphas, ctx.emas, ctx.with_weight, scales, ctx.offsets, strict=True
        ):
            given = (weight, alpha, ema, with_weight, scale, offset)
            grad_alpha, grad_weight = calls.scores_backward(*given, grad_scores, for_weight)
            grad_weights.append(grad_weight)
            grad_alphas.append(grad_alpha)
        return (None, None, None, None, None, *grad_weights, *grad_alphas)


def draw(
    layers: Sequence[ScoredLayer],
    limits: Limits,
    temperature: float,
    uniform: Float[Tensor, "M groups"] | None,
    score_gradient: str,
) -> Draw | None:
    """Masks of all groups, their distribution and pattern; the best ones without `uniform`. None without the kernels.

    Args:
        layers: of one network.
        limits: constants of the logits.
        temperature: of the distribution.
        uniform: a number in [0, 1) for each group.
        score_gradient: as the setting of that name.
    """
    if not usable(layers[0].weight):
        return None
    # Weights that the scores do not teach must not make the masks depend on them.
    taught = layers[0].with_weight and score_gradient != "alpha"
    weights = [layer.weight if taught else layer.weight.detach() for layer in layers]
    parameters = [*weights, *(layer.alpha for layer in layers)]
    masks: Draw = _Draw.apply(layers, limits, temperature, uniform, score_gradient, *parameters)
    return masks


def argmax(layers: Sequence[ScoredLayer], limits: Limits) -> Float[Tensor, "M groups 4"] | None:
    """The best masks of all groups. None without the kernels."""
    return best(_scores(layers, limits)[0]) if usable(layers[0].weight) else None


def best(grouped: Float[Tensor, "M groups 4"]) -> Float[Tensor, "M groups 4"] | None:
    """The best mask of each group of scores. None without the kernels."""
    return calls.draw(grouped, 1.0, None, with_probs=False)[0] if usable(grouped) else None
