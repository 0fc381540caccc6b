"""A linear layer whose one weight matrix is seen by every agent through a learnable 2:4 mask of its own."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.core.config import MaskConfig
from k24lab.core.masks import argmax_masks, draw_masks
from k24lab.errors import ConfigError

SELECTION_DECAY = 0.99  # of the running selection frequency, per drawn mask
SMALLEST_WEIGHT = 1e-30  # smaller ones score as this does, without a gradient


class DenseLinear(nn.Module):
    """`n_networks` independent dense layers (1: shared by all agents)."""

    def __init__(self, in_features: int, out_features: int, n_networks: int = 1):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(n_networks, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_networks, out_features).uniform_(-bound, bound))

    def effective(self) -> tuple[Float[Tensor, "K out in"], Float[Tensor, "K out"]]:
        """What each network computes with."""
        return self.weight, self.bias


class EMAActivationTracker(nn.Module):
    """Running mean of |x_i| over the inputs of a layer, one per mask or one for all.

    It is state: saved, loaded and moved with the module. Until the first update it is 1, so that scores
    start from the weights alone.
    """

    ema_activation: Tensor
    started: Tensor

    def __init__(self, n_masks: int, in_features: int, decay: float = 0.99, scope: str = "mask"):
        super().__init__()
        self.decay = decay
        rows = n_masks if scope == "mask" else 1
        self.register_buffer("ema_activation", torch.ones(rows, in_features))
        self.register_buffer("started", torch.zeros(rows, 1, dtype=torch.bool))

    @torch.no_grad()
    def update(self, magnitude: Float[Tensor, "M in"], count: Float[Tensor, " M"] | None = None) -> None:
        """Move towards `magnitude`, the mean |x_i| over the `count` inputs of each mask in one batch.

        The first batch sets it; a mask that saw no input stays as it is. Without `count` all saw the same number.
        """
        count = magnitude.new_ones(len(magnitude)) if count is None else count
        if len(self.ema_activation) == 1:  # one for all: the mean over all inputs
            magnitude = ((count / count.sum().clamp_min(1)) @ magnitude).unsqueeze(0)
            count = count.sum(dim=0, keepdim=True)
        seen = (count > 0).unsqueeze(1)
        if (seen & self.started).all():  # nearly always, and much quicker
            self.ema_activation.lerp_(magnitude.to(self.ema_activation), 1 - self.decay)
            return
        target = torch.where(seen, magnitude.to(self.ema_activation), self.ema_activation)
        self.ema_activation.lerp_(target, torch.where(self.started, 1 - self.decay, 1.0).to(target))
        self.started |= seen

    @torch.no_grad()
    def soften(self, share: float) -> None:
        """Move every entry by `share` of the way to the mean of its mask."""
        self.ema_activation.lerp_(self.ema_activation.mean(dim=1, keepdim=True).expand_as(self.ema_activation), share)


class SemiStructuredLinear24(nn.Module):
    """`y = (W * mask_m) x + b` with W and b shared and a 2:4 mask per agent (or unit type) m.

    Masks come from scores |W|^p * EMA_m(|x|)^q * sigmoid(hetero_alpha_m), see `k24lab.core.masks`.
    Alone it is a layer like any other: `layer(x)` with x [M, *, in] draws new masks in training mode and takes
    the argmax masks in evaluation mode. A network draws the masks of all its layers at once instead.

    Args:
        in_features: any number; groups of four are padded with zeros that cost nothing but bookkeeping.
        out_features: any number.
        n_masks: M.
        config: how masks are scored and drawn.
        learn_masks: False leaves hetero_alpha at its random start: fixed random masks.
    """

    selection_frequency: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_masks: int,
        *,
        config: MaskConfig | None = None,
        learn_masks: bool = True,
    ):
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "n_masks": n_masks}
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{key} = {value!r} must be at least 1")
        self.in_features, self.out_features, self.n_masks = in_features, out_features, n_masks
        self.config = config or MaskConfig()
        self.temperature = self.config.temperature_init
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        alpha = torch.randn(n_masks, out_features, in_features) * self.config.hetero_init_scale
        self.hetero_alpha = nn.Parameter(alpha, requires_grad=learn_masks)
        self.ema_tracker = EMAActivationTracker(n_masks, in_features, self.config.ema_decay, self.config.ema_scope)
        # How often each entry was selected of late: what the revival of hetero_alpha goes by.
        self.register_buffer("selection_frequency", torch.full_like(alpha, 0.5))

    def scores(self, weight_gradient: bool = True) -> Float[Tensor, "M out in"]:
        """`S[m,o,i]`, at least in float32; without `weight_gradient` only hetero_alpha learns."""
        p, q = self.config.score_weight_power, self.config.score_ema_power
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        scores = torch.sigmoid(self.hetero_alpha.to(dtype))
        if q:
            scores = scores * self.ema_tracker.ema_activation.to(dtype).pow(q).unsqueeze(1)
        if p:
            learns = weight_gradient and self.config.score_gradient != "alpha"
            weight = self.weight if learns else self.weight.detach()
            size = weight.to(dtype).abs()
            # A root has no derivative at a weight that is exactly zero.
            scores = scores * (size if p == 1 else size.clamp_min(SMALLEST_WEIGHT).pow(p))
        return scores

    @torch.no_grad()
    def count_selection(self, mask: Float[Tensor, "M out in"]) -> None:
        """Move the running selection frequency towards a mask that was used."""
        self.selection_frequency.lerp_(mask.to(self.selection_frequency.dtype), 1 - SELECTION_DECAY)

    def forward(self, x: Float[Tensor, "M *batch in"]) -> Float[Tensor, "M *batch out"]:
        """Apply mask m to x[m]."""
        flat = x.reshape(len(x), -1, self.in_features)
        if self.training:
            mask = draw_masks([self], self.temperature, self.config.logit_scale, self.config.noise).masks[0]
            self.count_selection(mask)
            self.ema_tracker.update(flat.detach().abs().mean(dim=1), flat.new_full((len(x),), flat.shape[1]))
        else:
            mask = argmax_masks([self])[0]
        y = torch.baddbmm(self.bias.expand(self.n_masks, 1, -1), flat, (self.weight * mask).mT)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, for print(agent)."""
        return f"in_features={self.in_features}, out_features={self.out_features}, n_masks={self.n_masks}"
