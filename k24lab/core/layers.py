"""A linear layer whose one weight matrix is seen by every agent through a learnable 2:4 mask of its own."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from k24lab.core.config import MaskConfig
from k24lab.core.masks import MaskDraw, Noise, argmax_masks, draw_masks
from k24lab.errors import InputError
from k24lab.ops.library import usable

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

        The first batch sets it; a mask that saw no input stays as it is, and so do inputs whose mean is no number or
        infinite. Without `count` all saw the same number.
        """
        count = magnitude.new_ones(len(magnitude)) if count is None else count
        if len(self.ema_activation) == 1:  # one for all: the mean over all inputs
            magnitude = ((count / count.sum().clamp_min(1)) @ magnitude).unsqueeze(0)
            count = count.sum(dim=0, keepdim=True)
        seen = (count > 0).unsqueeze(1)
        # One overflow, as mixed precision has them now and then, would stay in the mean for good.
        target = torch.where(seen & magnitude.isfinite(), magnitude.to(self.ema_activation), self.ema_activation)
        self.ema_activation.lerp_(target, torch.where(self.started, 1 - self.decay, 1.0).to(target))
        self.started |= seen

    def update_from_sum(self, total: Float[Tensor, "M in"], count: Float[Tensor, " M"]) -> None:
        """`update` with the sum of |x_i| in place of the mean."""
        self.update(total / count.clamp_min(1).unsqueeze(1), count)

    @torch.no_grad()
    def soften(self, share: float) -> None:
        """Move every entry by `share` of the way to the mean of its mask."""
        self.ema_activation.lerp_(self.ema_activation.mean(dim=1, keepdim=True).expand_as(self.ema_activation), share)


def update_trackers(
    trackers: Sequence[EMAActivationTracker], magnitudes: Sequence[Float[Tensor, "M _"]], count: Float[Tensor, " M"]
) -> None:
    """`update` of trackers of one network, whose layers saw the same steps."""
    means = [tracker.ema_activation for tracker in trackers]
    # Nearly always, and much quicker; a GPU that need not wait is not asked.
    if (
        usable(means[0])
        and len(means[0]) == len(count)
        and all(bool(started.all()) for started in (count > 0, *(tracker.started for tracker in trackers)))
    ):
        torch._foreach_lerp_(means, list(magnitudes), 1 - trackers[0].decay)
        return
    for tracker, magnitude in zip(trackers, magnitudes, strict=True):
        tracker.update(magnitude, count)


class SharedDraw:
    """A draw that several forward passes of a layer share, and the inputs that they saw (`k24lab.drawn_masks`)."""

    def __init__(self, mask: Float[Tensor, "M out in"], pattern_probs: Float[Tensor, "6 M groups"]):
        self.mask, self.pattern_probs = mask, pattern_probs
        # Of each mask: the sum of |x| over its inputs [M, in], and their number [M].
        self.seen: tuple[Tensor, Tensor] | None = None

    def add(self, total: Float[Tensor, "M in"], count: Float[Tensor, " M"]) -> None:
        """Take in the inputs of one forward pass."""
        self.seen = (total, count) if self.seen is None else (self.seen[0] + total, self.seen[1] + count)


class SemiStructuredLinear24(nn.Module):
    """`y = (W * mask_m) x + b` with W and b shared and a 2:4 mask per agent (or unit type) m.

    Masks come from scores |W|^p * EMA_m(|x|)^q * sigmoid(hetero_alpha_m), see `k24lab.core.masks`. In training mode a
    forward pass draws new masks at the layer's `temperature`, which `k24lab.anneal` lowers; `k24lab.drawn_masks` makes
    one draw for all layers of a network and all forward passes of an update. In evaluation mode, and once the masks
    are frozen, the argmax masks are used.

    Args:
        in_features: any number; groups of four are padded with zeros that cost nothing but bookkeeping.
        out_features: any number.
        n_masks: M.
        bias: False leaves b out.
        config: how masks are scored, drawn and annealed.
        learn_masks: False leaves hetero_alpha at its random start. The masks are fixed only if `config` leaves weights
            and activations out of the scores; `k24lab.freeze_masks` fixes the masks of any configuration.

    Examples:
        >>> import torch, k24lab
        >>> layer = k24lab.SemiStructuredLinear24(8, 4, n_masks=3)
        >>> layer(torch.randn(3, 10, 8)).shape  # x[m] is for mask m
        torch.Size([3, 10, 4])
        >>> layer(torch.randn(10, 8), mask_index=torch.randint(3, (10,))).shape  # each row names its mask
        torch.Size([10, 4])
    """

    bias: nn.Parameter  # with bias=False a buffer of zeros, which no optimizer or state_dict sees
    selection_frequency: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_masks: int,
        bias: bool = True,
        *,
        config: MaskConfig | None = None,
        learn_masks: bool = True,
    ):
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "n_masks": n_masks}
        for key, value in sizes.items():
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise InputError(f"{key} = {value!r} must be a whole number, at least 1")
        self.in_features, self.out_features, self.n_masks = in_features, out_features, n_masks
        self.config = config or MaskConfig()
        # How masks are drawn now; `k24lab.anneal` sets these three.
        self.temperature = self.config.temperature_init
        self.logit_scale = self.config.logit_scale
        self.noise: Noise = self.config.noise
        self.shared_draw: SharedDraw | None = None
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        else:
            self.register_buffer("bias", torch.zeros(out_features), persistent=False)
        alpha = torch.randn(n_masks, out_features, in_features) * self.config.hetero_init_scale
        self.hetero_alpha = nn.Parameter(alpha, requires_grad=learn_masks)
        self.ema_tracker = EMAActivationTracker(n_masks, in_features, self.config.ema_decay, self.config.ema_scope)
        # How often each entry was selected of late: what the revival of hetero_alpha goes by.
        self.register_buffer("selection_frequency", torch.full_like(alpha, 0.5))

    @property
    def has_bias(self) -> bool:
        """Whether the bias is a parameter."""
        return "bias" in self._parameters

    @property
    def learns_masks(self) -> bool:
        """Whether the masks are still drawn and learned; `k24lab.freeze_masks` ends it."""
        alpha: Tensor = self.hetero_alpha
        while torch._C._functorch.is_batchedtensor(alpha):  # inside torch.vmap, where no tensor says that it learns
            alpha = torch._C._functorch.get_unwrapped(alpha)
        return alpha.requires_grad

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

    def mask(self) -> Float[Tensor, "M out in"]:
        """The masks of a forward pass: those of `k24lab.drawn_masks`, a new draw in training mode, or the argmax."""
        if self.shared_draw is not None:
            return self.shared_draw.mask
        if not (self.training and self.learns_masks):
            return self.argmax_mask()
        mask = current_draw([self]).masks[0]
        self.count_selection(mask)
        return mask

    def argmax_mask(self) -> Float[Tensor, "M out in"]:
        """The masks of evaluation, without a gradient."""
        with full_precision(self.weight):
            return argmax_masks([self])[0]

    @torch.no_grad()
    def observe(self, rows: Float[Tensor, "M R in"], count: Int[Tensor, " M"] | None = None) -> None:
        """In training mode move the running mean of |x|, which is part of the scores.

        Args:
            rows: inputs of each mask; rows of zeros beyond its `count`.
            count: inputs of each mask; None: R.
        """
        if not (self.training and self.learns_masks):
            return
        kind = self.ema_tracker.ema_activation.dtype
        seen = rows.new_full((self.n_masks,), rows.shape[1], dtype=kind) if count is None else count.to(kind)
        total = torch.linalg.vector_norm(rows, ord=1, dim=1, dtype=torch.promote_types(kind, rows.dtype))
        if self.shared_draw is None:
            self.ema_tracker.update_from_sum(total, seen)
        else:  # the running mean decays once an update
            self.shared_draw.add(total, seen)

    def forward(self, x: Tensor, mask_index: Tensor | None = None) -> Tensor:
        """`y[m] = (W * mask_m) x[m] + b`, or with `mask_index` `y[b] = (W * mask_i) x[b] + b` where i = mask_index[b].

        Args:
            x: [M, *batch, in_features], of any number of batch dimensions, also none; with `mask_index`, or with a
                single mask, [*batch, in_features].
            mask_index: [*batch], integers: the mask of each row.

        Returns:
            x's shape with out_features in place of in_features.

        Raises:
            InputError: a ValueError; sizes that do not fit, or an index of no mask.
        """
        self._check(x, mask_index)
        places = count = None
        if mask_index is None:
            rows = x.reshape(self.n_masks, -1, self.in_features)
        else:
            rows, places, count = rows_by_mask(x.flatten(0, -2), mask_index.flatten(), self.n_masks)
        mask = self.mask()
        self.observe(rows.detach(), count)
        y = torch.baddbmm(self.bias.expand(self.n_masks, 1, -1), rows, (self.weight * mask).mT)
        if places is not None:
            y = y.flatten(0, 1).index_select(0, places)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _check(self, x: Tensor, mask_index: Tensor | None) -> None:
        """Refuse what does not fit, with all sizes in the message."""
        m, size, shape = self.n_masks, self.in_features, tuple(x.shape)
        if not x.is_floating_point():
            raise InputError(f"x is {x.dtype}, expected floating-point numbers")
        if mask_index is not None:
            if mask_index.is_floating_point() or mask_index.is_complex() or mask_index.dtype == torch.bool:
                raise InputError(f"mask_index is {mask_index.dtype}, expected integers")
            if x.dim() < 2 or shape[-1] != size or mask_index.shape != x.shape[:-1]:
                found = f"x of shape {shape} with mask_index of shape {tuple(mask_index.shape)}"
                raise InputError(f"{found}, expected (*batch, {size}) with (*batch)")
        elif m == 1:
            if x.dim() < 1 or shape[-1] != size:
                raise InputError(f"x of shape {shape}, expected (*batch, {size})")
        elif x.dim() < 2 or shape[-1] != size or shape[0] != m:
            hint = ". For rows of mixed masks give mask_index" if shape[-1:] == (size,) else ""
            raise InputError(f"x of shape {shape}, expected ({m}, *batch, {size}): x[m] is for mask m of {m}{hint}")

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a shared draw belongs to one update of one network."""
        return {**self.__dict__, "shared_draw": None}

    def extra_repr(self) -> str:
        """Sizes, for print(agent)."""
        bias = "" if self.has_bias else ", bias=False"
        return f"in_features={self.in_features}, out_features={self.out_features}, n_masks={self.n_masks}{bias}"


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast: scores, distributions and masks are computed in float32."""
    return torch.autocast(like.device.type, enabled=False)


def current_draw(layers: Sequence[SemiStructuredLinear24], generator: torch.Generator | None = None) -> MaskDraw:
    """Masks for one update, of layers that agree in how masks are drawn; the argmax where masks learn no more."""
    first = layers[0]
    noise: Noise = first.noise if first.learns_masks else "none"
    grad = first.learns_masks and torch.is_grad_enabled()  # through fixed masks not even |W| learns
    with full_precision(first.weight), torch.set_grad_enabled(grad):
        return draw_masks(layers, first.temperature, first.logit_scale, noise, generator)


def rows_by_mask(
    x: Float[Tensor, "B in"], mask_index: Int[Tensor, " B"], n_masks: int
) -> tuple[Float[Tensor, "M R in"], Int[Tensor, " B"], Int[Tensor, " M"]]:
    """Sort rows by their mask, R rows of each, padded with zeros.

    Returns:
        The rows, the place of each row of x among the M * R, and how many rows each mask has.
    """
    mask_index = mask_index.to(x.device, torch.int64)
    each = torch.arange(n_masks, device=x.device).unsqueeze(1) == mask_index
    count = each.sum(dim=1)
    counts = count.tolist()
    if sum(counts) != len(x):
        low, high = int(mask_index.min()), int(mask_index.max())
        raise InputError(f"mask_index from {low} to {high}, expected 0 to {n_masks - 1}: there are {n_masks} masks")
    most = max(counts)
    place = each.cumsum(dim=1).gather(0, mask_index.unsqueeze(0)).squeeze(0) - 1  # among the rows of its mask
    places = mask_index * most + place
    rows = x.new_zeros(n_masks * most, x.shape[1]).index_copy(0, places, x)
    return rows.unflatten(0, (n_masks, most)), places, count
