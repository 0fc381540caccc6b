"""2:4 masks of whole networks in C: the numbers of `k24lab.core.masks` without torch's many small passes."""

from __future__ import annotations

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


Draw = tuple[list[Tensor], Float[Tensor, "6 M groups"], Int[Tensor, "M groups"]]


def _groups(weight: Float[Tensor, "out in"]) -> int:
    """How many groups a layer has."""
    return len(weight) * -(-weight.shape[1] // GROUP_SIZE)


def _as_drawn(layers: Sequence[ScoredLayer], *arrays: Sequence[Tensor | None]) -> Any:
    """Structs `drawn` of `masks.c`, with arrays of each layer: its masks or the gradients to them, and its results."""
    each = []
    for layer, *own in zip(layers, *arrays, strict=True):
        stride = 0 if layer.ema is None or layer.ema.shape[0] == 1 else layer.ema.shape[1]
        parts = calls.addresses([layer.weight, layer.alpha, layer.ema])
        given = calls.addresses(own) + [None] * (3 - len(own))
        each.append([*parts, stride, int(layer.with_weight), *layer.weight.shape, *given])
    return calls.structs(each)


def _all_usable(layers: Sequence[ScoredLayer]) -> bool:
    """Whether the kernel can read every tensor: it takes what stands at their addresses for float32."""
    parts = (part for layer in layers for part in (layer.weight, layer.alpha, layer.ema) if part is not None)
    return usable(layers[0].weight) and all(part.is_cpu and part.dtype == torch.float32 for part in parts)


def _contiguous(layers: Sequence[ScoredLayer]) -> list[ScoredLayer]:
    return [
        layer._replace(
            weight=layer.weight.contiguous(),
            alpha=layer.alpha.contiguous(),
            ema=None if layer.ema is None else layer.ema.contiguous(),
        )
        for layer in layers
    ]


def _draw(
    layers: Sequence[ScoredLayer], limits: Limits, temperature: float, uniform: Tensor | None, with_probs: bool
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """Masks of each layer, the scale of its scores, and with `with_probs` the distributions and the patterns."""
    alpha, total = layers[0].alpha, sum(_groups(layer.weight) for layer in layers)
    masks, scale = [torch.empty_like(layer.alpha) for layer in layers], alpha.new_empty(len(layers), len(alpha))
    probs = alpha.new_empty(6, len(alpha), total) if with_probs else None
    index = torch.empty(len(alpha), total, dtype=torch.int32, device="cpu") if with_probs else None
    sizes = (len(layers), len(alpha), total, _as_drawn(layers, masks))
    calls.check(calls.call("k24_draw", *sizes, *map(float, limits), float(temperature), uniform, scale, index, probs))
    return masks, scale, probs, index


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
    ) -> tuple[Tensor, ...]:
        layers = _contiguous(layers)
        masks, scale, probs, index = _draw(layers, limits, temperature, uniform, with_probs=True)
        assert probs is not None and index is not None
        ctx.temperature, ctx.score_gradient = temperature, score_gradient
        ctx.save_for_backward(probs, scale, *(p for layer in layers for p in (layer.weight, layer.alpha)))
        # Copies: a layer on its own moves its running activations before the backward pass.
        ctx.layers = [(None if layer.ema is None else layer.ema.clone(), layer.with_weight) for layer in layers]
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return (probs, index, *masks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        probs, scale, *saved = ctx.saved_tensors
        parameters = zip(saved[::2], saved[1::2], strict=True)
        layers = [ScoredLayer(*pair, *rest) for pair, rest in zip(parameters, ctx.layers, strict=True)]
        by_probs, _, *by_masks = (None if g is None else g.contiguous() for g in grads)
        everything, masks_teach = ctx.score_gradient == "all", any(g is not None for g in by_masks)
        taught = everything or (ctx.score_gradient == "td" and masks_teach)
        by_alphas = [torch.empty_like(layer.alpha) for layer in layers]
        by_weights = [torch.empty_like(layer.weight) if taught and layer.with_weight else None for layer in layers]
        sizes = (len(layers), *probs.shape[1:], _as_drawn(layers, by_masks, by_alphas, by_weights))
        given = (scale, float(ctx.temperature), probs, by_probs, int(everything))
        calls.check(calls.call("k24_draw_backward", *sizes, *given))
        return (None, None, None, None, None, *by_weights, *by_alphas)


def draw(
    layers: Sequence[ScoredLayer],
    limits: Limits,
    temperature: float,
    uniform: Float[Tensor, "M groups"] | None,
    score_gradient: str,
) -> Draw | None:
    """Masks of each layer, their distributions and patterns; the best ones without `uniform`. None without the kernels.

    Args:
        layers: of one network.
        limits: constants of the logits.
        temperature: of the distribution.
        uniform: a number in [0, 1) for each group.
        score_gradient: as the setting of that name.
    """
    if not _all_usable(layers):
        return None
    # Weights that the scores do not teach must not make the masks depend on them.
    taught = layers[0].with_weight and score_gradient != "alpha"
    weights = [layer.weight if taught else layer.weight.detach() for layer in layers]
    parameters = [*weights, *(layer.alpha for layer in layers)]
    probs, index, *masks = _Draw.apply(layers, limits, temperature, uniform, score_gradient, *parameters)
    return masks, probs, index


def argmax(layers: Sequence[ScoredLayer], limits: Limits) -> list[Tensor] | None:
    """The best masks of each layer. None without the kernels."""
    if not _all_usable(layers):
        return None
    return _draw(_contiguous(layers), limits, 1.0, None, with_probs=False)[0]


def best(grouped: Float[Tensor, "M groups 4"]) -> Float[Tensor, "M groups 4"] | None:
    """The best mask of each group of scores. None without the kernels."""
    return calls.best(grouped) if usable(grouped) else None


class _Seen(torch.autograd.Function):
    """`W * mask` of all layers of a network; both get their gradients in one pass."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        given = tuple(x.contiguous() for x in given)
        ctx.save_for_backward(*given)
        masks = given[len(given) // 2 :]
        products = [torch.empty_like(mask) for mask in masks]
        calls.call("k24_seen", len(masks), _as_seen(given, products))
        return tuple(products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        given, grads = ctx.saved_tensors, tuple(grad.contiguous() for grad in grads)
        results = [torch.empty_like(x) for x in given]
        calls.call("k24_seen_backward", len(grads), _as_seen(given, grads, results))
        return tuple(results)


def _as_seen(given: Sequence[Tensor], products: Sequence[Tensor], results: Sequence[Tensor] = ()) -> Any:
    """Structs `seen` of `masks.c`, from weights, then masks, and the gradients to them in the same order."""
    n, each = len(products), []
    for k, product in enumerate(products):
        own = calls.addresses([given[k], given[n + k], product, *results[k::n]])
        each.append([*own, *[None] * (5 - len(own)), product.shape[0], given[k].numel()])
    return calls.structs(each)


def seen_through(
    weights: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Float[Tensor, "M _ _"]]
) -> Sequence[Float[Tensor, "M _ _"]]:
    """`W * mask` of all layers, whose sizes differ."""
    if not masks or not torch.is_grad_enabled() or not usable(weights[0]):
        return [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    products: tuple[Tensor, ...] = _Seen.apply(*weights, *masks)
    return products
