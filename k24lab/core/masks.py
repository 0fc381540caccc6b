"""From scores to 2:4 masks, for all layers and all agents of a network in one go."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from k24lab.core.config import MaskConfig
from k24lab.core.patterns import (
    best_index,
    expected_masks,
    group_scores,
    masks_from_index,
    n_groups,
    pattern_logits,
    sample_index,
    ungroup,
)
from k24lab.ops import mask_draws
from k24lab.ops.mask_draws import Limits, ScoredLayer

Noise = Literal["annealed", "literal", "none"]
BY_KERNELS = ("annealed", "none")  # the noises that `k24lab.ops.mask_draws` knows
# Below every real score: a group with padding keeps as many real weights as it has, at every temperature. With
# zeros the loss of orthogonality would drive the coefficients of such groups down until padding is as good.
PADDING_SCORE = -1e6
PINNED_ALPHA = -60.0  # its sigmoid, 1e-26, lies below every score of an entry that is kept
SMALLEST_SCORE = 1e-30  # mean scores below it count as zero: its inverse, times any logit_scale, is still a float32


@runtime_checkable
class MaskedLayer(Protocol):
    """What masks are made of: a `k24lab.core.layers.SemiStructuredLinear24`."""

    config: MaskConfig
    in_features: int
    out_features: int
    n_masks: int
    weight: nn.Parameter
    hetero_alpha: nn.Parameter
    ema_tracker: Any

    def scores(self, weight_gradient: bool = True) -> Float[Tensor, "M out in"]:
        """Scores of all weights."""
        ...


class MaskDraw(NamedTuple):
    """Masks of L layers, and where they come from; `groups` runs over all layers, rows and groups."""

    masks: list[Tensor]  # L of [M, out, in], exactly 2:4 in value; carry a gradient if drawn for training
    pattern_probs: Float[Tensor, "6 M groups"]  # pi, the distribution that the loss of orthogonality sees
    pattern_index: Int[Tensor, "M groups"]  # the pattern of each group


def network_logits(
    layers: Sequence[MaskedLayer],
    logit_scale: float,
    normalise: bool = True,
    weight_gradient: bool = True,
) -> Float[Tensor, "6 M groups"]:
    """Pattern logits of all groups of all layers, `logit_scale * S . pattern / mean(S_m)`.

    The mean is over one layer's scores of one mask and carries no gradient; `normalise=False` leaves the
    scores as they are and pads with zeros, as the original design has it.
    """
    grouped = []
    for layer in layers:
        scores = layer.scores(weight_gradient)
        if normalise:
            mean = scores.detach().mean(dim=(1, 2), keepdim=True)
            # A layer whose inputs were all zero has scores of zero: its patterns tie, nothing divides by zero.
            scores = scores * (logit_scale / mean.clamp_min(SMALLEST_SCORE))
        grouped.append(group_scores(scores, PADDING_SCORE if normalise else 0.0))
    return pattern_logits(torch.cat(grouped, dim=1))


def draw_masks(
    layers: Sequence[MaskedLayer],
    temperature: float,
    logit_scale: float,
    noise: Noise,
    generator: torch.Generator | None = None,
) -> MaskDraw:
    """Draw one mask per layer and agent, straight-through.

    `annealed`: a pattern from softmax(z / temperature), which is the gradient too. `none`: the argmax pattern
    with the same gradient. `literal`: Gumbel-softmax over the raw scores, as the original design has it, in
    which the temperature has no influence on what is drawn.
    """
    config = layers[0].config
    normalise = "literal" not in (noise, config.noise)
    uniform = uniform_numbers(layers, generator) if noise == "annealed" else None
    if normalise and noise in BY_KERNELS and (scored := _scored(layers)):
        limits = Limits(logit_scale, SMALLEST_SCORE, PADDING_SCORE)
        drawn = mask_draws.draw(scored, limits, temperature, uniform, config.score_gradient)
        if drawn is not None:
            return MaskDraw(*drawn)
    z = network_logits(layers, logit_scale, normalise)
    probs = torch.softmax(z / temperature, dim=0)  # what learns through the masks
    if uniform is not None:
        soft, index = probs, sample_index(probs.detach(), uniform)
    elif noise == "none":
        soft, index = probs, best_index(z.detach())
    else:
        gumbel = -torch.empty_like(z).exponential_(generator=generator).log()
        soft = torch.softmax((z + gumbel) / temperature, dim=0)
        index = best_index((z + gumbel).detach())
    if config.score_gradient == "td":  # the distribution moves hetero_alpha alone
        for_alpha = network_logits(layers, logit_scale, normalise, weight_gradient=False)
        probs = torch.softmax(for_alpha / temperature, dim=0)
    soft_mask = expected_masks(soft)
    # (x - x) is exactly 0, so the value is exactly the drawn mask and the gradient that of the soft one.
    grouped = masks_from_index(index, soft) + (soft_mask - soft_mask.detach())
    return MaskDraw(_split(grouped, layers), probs, index)


def uniform_numbers(layers: Sequence[MaskedLayer], generator: torch.Generator | None) -> Float[Tensor, "M groups"]:
    """A uniform number for each group of all layers."""
    like, shape = layers[0].weight, (layers[0].n_masks, sum(groups_per_layer(layers)))
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(shape, device=like.device, dtype=dtype, generator=generator)


def _scored(layers: Sequence[MaskedLayer]) -> list[ScoredLayer]:
    """What the kernels need to score these layers; nothing where they do not know the score."""
    config = layers[0].config
    if not {config.score_weight_power, config.score_ema_power} <= {0.0, 1.0}:
        return []
    return [
        ScoredLayer(
            layer.weight,
            layer.hetero_alpha,
            layer.ema_tracker.ema_activation if config.score_ema_power else None,
            config.score_weight_power == 1,
        )
        for layer in layers
    ]


@torch.no_grad()
def argmax_masks(layers: Sequence[MaskedLayer]) -> list[Tensor]:
    """The masks [M, out, in] of acting, target networks and evaluation: the best pattern of each group.

    Exactly 2:4 for every score, ties and zeros included; a tie goes to the first pattern. No gradient.
    """
    if not layers:
        return []
    config = layers[0].config
    if config.noise != "literal" and (scored := _scored(layers)):
        masks = mask_draws.argmax(scored, Limits(config.logit_scale, SMALLEST_SCORE, PADDING_SCORE))
        if masks is not None:
            return masks
    z = network_logits(layers, config.logit_scale, normalise=config.noise != "literal")
    return _split(masks_from_index(best_index(z), z), layers)


@torch.no_grad()
def pin_masks(layers: Sequence[MaskedLayer]) -> None:
    """Fix the argmax masks: hetero_alpha learns no more, and what a mask drops can never outscore what it keeps."""
    for layer, mask in zip(layers, argmax_masks(layers), strict=True):
        layer.hetero_alpha.requires_grad_(False)
        layer.hetero_alpha.masked_fill_(mask == 0, PINNED_ALPHA)


def _split(grouped: Float[Tensor, "M groups 4"], layers: Sequence[MaskedLayer]) -> list[Tensor]:
    """Cut the groups of all layers into one mask per layer, in the dtype of its weight."""
    parts = grouped.split(groups_per_layer(layers), dim=1)
    return [
        ungroup(part, layer.out_features, layer.in_features).to(layer.weight.dtype)
        for part, layer in zip(parts, layers, strict=True)
    ]


def groups_per_layer(layers: Sequence[MaskedLayer]) -> list[int]:
    """How many groups each layer has, out * G."""
    return [layer.out_features * n_groups(layer.in_features) for layer in layers]
