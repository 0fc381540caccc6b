"""Layers of the methods that K-2:4 is compared with: one magnitude mask for all, and Kaleidoscope's thresholds."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from k24lab.core.patterns import best_index, group_scores, masks_from_index, pattern_logits, ungroup
from k24lab.ops import mask_draws

LAYER_WEIGHTS = (1.0, 2.0, 4.0, 8.0)  # of fc1 to fc4 in Kaleidoscope's bonus


def _fresh_parameters(in_features: int, out_features: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias as torch.nn.Linear starts them."""
    bound = 1 / math.sqrt(in_features)
    weight, bias = torch.empty(out_features, in_features), torch.empty(out_features)
    return nn.Parameter(weight.uniform_(-bound, bound)), nn.Parameter(bias.uniform_(-bound, bound))


class _StraightThrough24(torch.autograd.Function):
    """`W * mask`, whose gradient reaches dropped weights too and lets them decay."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return weight * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        return grads[0] + ctx.decay * (1 - mask) * weight, None, None


class MagnitudeLinear24(nn.Module):
    """One 2:4 mask for all agents: the two largest |W| of each four, anew at every use (SR-STE).

    The gradient passes straight through the mask, so that a dropped weight can come back, and dropped weights decay,
    which keeps the mask from flipping (Zhou et al., "Learning N:M fine-grained structured sparse neural networks from
    scratch", ICLR 2021).
    """

    DECAY = 2e-4  # of dropped weights; the paper's

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight, self.bias = _fresh_parameters(in_features, out_features)

    @torch.no_grad()
    def mask(self) -> Float[Tensor, "out in"]:
        """Exactly 2:4, whatever the weights are; a tie goes to the first pattern."""
        grouped = group_scores(self.weight.abs().unsqueeze(0), padding=-1.0)
        chosen = mask_draws.best(grouped)
        if chosen is None:
            chosen = masks_from_index(best_index(pattern_logits(grouped)), grouped)
        return ungroup(chosen, *self.weight.shape).squeeze(0)

    def effective(self) -> tuple[Float[Tensor, "1 out in"], Float[Tensor, "1 out"]]:
        """What the layer computes with."""
        weight: Tensor = _StraightThrough24.apply(self.weight, self.mask(), self.DECAY)
        return weight.unsqueeze(0), self.bias.unsqueeze(0)


class _Kept(torch.autograd.Function):
    """1 where the argument is positive; the gradient is squashed by tanh and passed on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.tanh(grads[0])


class ThresholdLinear(nn.Module):
    """Kaleidoscope's layer: one weight matrix, soft-thresholded for each mask (Li et al., NeurIPS 2024).

    Mask m computes with `sign(W) relu(|W| - sigmoid(threshold[m]))`. Thresholds start, and start again after a reset,
    at `-scale (u + 1)` with u uniform in [0, 1). With the original scale of 5 the masks of an untrained layer drop next
    to nothing, with 2 about a half.
    """

    def __init__(self, in_features: int, out_features: int, n_masks: int, scale: float = 5.0):
        super().__init__()
        self.scale = scale
        self.weight, self.bias = _fresh_parameters(in_features, out_features)
        self.threshold = nn.Parameter(self._fresh_threshold(torch.rand(n_masks, out_features, in_features)))

    def _fresh_threshold(self, uniform: Tensor) -> Tensor:
        return -(self.scale * uniform + self.scale)

    @property
    def own(self) -> list[nn.Parameter]:
        """Parameters that belong to single agents."""
        return [self.threshold]

    def effective(self) -> tuple[Float[Tensor, "M out in"], Float[Tensor, "1 out"]]:
        """What each mask computes with."""
        size = (self.weight.abs() - torch.sigmoid(self.threshold)).relu()
        return self.weight.sign() * size, self.bias.unsqueeze(0)

    def magnitudes(self) -> Float[Tensor, "M out in"]:
        """|W| where a mask keeps it, 0 elsewhere; only the thresholds learn from it."""
        size = self.weight.detach().abs()
        kept: Tensor = _Kept.apply(size - torch.sigmoid(self.threshold))
        return kept * size

    @torch.no_grad()
    def dropped(self) -> Bool[Tensor, "M out in"]:
        """Weights that each mask drops."""
        return self.weight.abs() <= torch.sigmoid(self.threshold)

    def sparsity(self) -> Float[Tensor, " M"]:
        """Share of the weights that each mask drops."""
        return self.dropped().flatten(1).float().mean(dim=1)

    def dropped_by_all(self) -> Bool[Tensor, "out in"]:
        """Weights that no mask keeps."""
        return self.dropped().all(dim=0)

    @torch.no_grad()
    def reset(self, ratio: float, generator: torch.Generator) -> int:
        """Start a share `ratio` of the weights that no mask keeps anew, with their thresholds; returns how many."""

        def uniform(like: Tensor) -> Tensor:
            return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)

        chosen = self.dropped_by_all() & (uniform(self.weight) < ratio)
        self.threshold.copy_(torch.where(chosen, self._fresh_threshold(uniform(self.threshold)), self.threshold))
        fresh = (2 * uniform(self.weight) - 1) / math.sqrt(self.weight.shape[1])
        self.weight.copy_(torch.where(chosen, fresh, self.weight))
        return int(chosen.sum())


def mask_distance(layers: Sequence[ThresholdLinear], layer_weights: Sequence[float]) -> Float[Tensor, ""]:
    """Kaleidoscope's bonus: mean L1 distance of two masks' magnitudes, per weight of all layers.

    Both orders of each pair count, and each layer by its weight; divided by M (M - 1) and the number of weights.
    0 for a single mask.
    """
    n_masks, total = len(layers[0].threshold), sum(layer.weight.numel() for layer in layers)
    if n_masks == 1:
        return layers[0].threshold.sum() * 0.0
    distance = torch.zeros((), device=layers[0].weight.device, dtype=layers[0].weight.dtype)
    for layer, layer_weight in zip(layers, layer_weights, strict=True):
        size = layer.magnitudes()
        for n in range(1, n_masks):  # pair by pair: all at once would need M times the memory of the masks
            distance = distance + 2 * layer_weight * (size[n:] - size[:-n]).abs().sum()
    return distance / (n_masks * (n_masks - 1) * total)
