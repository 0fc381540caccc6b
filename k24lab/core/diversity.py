"""Keeping the masks apart: the orthogonality of pattern distributions and its adaptive weight."""

import math
from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from k24lab.ops import calls
from k24lab.ops.library import usable


def pairwise_similarity(probs: Float[Tensor, "6 M groups"]) -> Float[Tensor, "M M"]:
    """Mean over groups of pi_a . pi_b, for every pair of masks (the diagonal is a mask with itself)."""
    flat = probs.transpose(0, 1).flatten(1)
    return flat @ flat.T / probs.shape[2]


class _SumOverPairs(torch.autograd.Function):
    """Sum over groups and ordered pairs of masks of pi_a . pi_b; keeps nothing but the distributions themselves."""

    @staticmethod
    def forward(ctx: Any, probs: Tensor) -> Tensor:
        ctx.save_for_backward(probs)
        if usable(probs):
            return calls.pairs(probs)
        return probs.sum(dim=1).square().sum() - probs.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (probs,) = ctx.saved_tensors
        if usable(probs):
            return calls.pairs_backward(probs, grads[0].item())
        return (probs.sum(dim=1, keepdim=True) - probs).mul_(2 * grads[0])


class PatternOrthogonalityLoss(nn.Module):
    """`mean over groups and pairs of pi_a . pi_b` in closed form, linear in the number of masks.

    1/6 for uniform distributions, 0 for disjoint ones and for a single mask.
    """

    def forward(self, probs: Float[Tensor, "6 M groups"]) -> Float[Tensor, ""]:
        """`(|sum_m pi_m|^2 - sum_m |pi_m|^2) / (M (M - 1))`, averaged over the groups of all layers."""
        n_masks, groups = probs.shape[1:]
        if n_masks == 1:
            return probs.sum() * 0.0
        return _SumOverPairs.apply(probs) / (groups * n_masks * (n_masks - 1))


class K24DiversityManager:
    """Weight of the diversity loss that keeps it in proportion to the TD loss.

    `|base * mean(td history) / mean(div history)|`, at most `cap` (None: any); `base` where a mean is zero or
    not finite. Plain floats: no graph is kept alive.
    """

    def __init__(self, base: float = 1.0, history: int = 100, cap: float | None = 10.0):
        self.base, self.cap = base, math.inf if cap is None else cap
        self.td_history: deque[float] = deque(maxlen=history)
        self.div_history: deque[float] = deque(maxlen=history)

    def coefficient(self, td_loss: float, div_loss: float) -> float:
        """Take in the losses of one update and return the weight for it."""
        self.td_history.append(td_loss)
        self.div_history.append(div_loss)
        td, div = (sum(h) / len(h) for h in (self.td_history, self.div_history))
        if not (math.isfinite(td) and math.isfinite(div)) or td == 0 or div == 0:
            return min(self.base, self.cap)
        return min(abs(self.base * td / div), self.cap)

    def state_dict(self) -> dict[str, list[float]]:
        """Both histories."""
        return {"td_history": list(self.td_history), "div_history": list(self.div_history)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take both histories back."""
        for name in ("td_history", "div_history"):
            history: deque[float] = getattr(self, name)
            history.clear()
            history.extend(state[name])


def similarity_stats(probs: Float[Tensor, "6 M groups"]) -> dict[str, float]:
    """Mean, largest and smallest similarity of two different masks (0 for a single one)."""
    n_masks = probs.shape[1]
    if n_masks == 1:
        return dict.fromkeys(("mean", "max", "min"), 0.0)
    rows, cols = torch.triu_indices(n_masks, n_masks, offset=1)
    pairs = pairwise_similarity(probs)[rows, cols]
    return {"mean": pairs.mean().item(), "max": pairs.max().item(), "min": pairs.min().item()}
