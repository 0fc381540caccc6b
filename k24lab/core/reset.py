"""Resets: a second chance for mask coefficients that are never selected, and a softer memory of activations."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24


def revival_candidates(layer: SemiStructuredLinear24, target: str, threshold: float) -> Bool[Tensor, "M out in"]:
    """Entries of hetero_alpha that a reset may revive.

    `unselected`: those whose running selection frequency is below `threshold`. `random`: all, as in the
    original design.
    """
    if target == "random":
        return torch.ones_like(layer.selection_frequency, dtype=torch.bool)
    return layer.selection_frequency < threshold


@torch.no_grad()
def revive(
    layer: SemiStructuredLinear24,
    candidates: Bool[Tensor, "M out in"],
    ratio: float,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator | None = None,
) -> int:
    """Give a share `ratio` of the candidates a fresh hetero_alpha and clear their optimizer moments.

    Returns the number of entries revived.
    """
    alpha = layer.hetero_alpha
    chosen = candidates & (torch.rand(alpha.shape, device=alpha.device, generator=generator) < ratio)
    fresh = torch.randn(alpha.shape, device=alpha.device, generator=generator) * layer.config.hetero_init_scale
    alpha.copy_(torch.where(chosen, fresh.to(alpha.dtype), alpha))
    layer.selection_frequency.masked_fill_(chosen, 0.5)  # unknown again: no second revival before it was tried
    for moment in optimizer.state.get(alpha, {}).values():
        if torch.is_tensor(moment) and moment.shape == alpha.shape:
            moment.masked_fill_(chosen, 0)
    return int(chosen.sum())


def reset_masks(
    layers: Sequence[SemiStructuredLinear24],
    config: MaskConfig,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Soften the running activations of these layers, and revive coefficients of theirs."""
    for layer in layers:
        layer.ema_tracker.soften(config.reset_ema_share)
        candidates = revival_candidates(layer, config.reset_target, config.reset_threshold)
        revive(layer, candidates, config.reset_ratio, optimizer, generator)


def mean_policy(q_values: Float[Tensor, "*n A"], avail: Bool[Tensor, "*n A"], weight: Tensor) -> Float[Tensor, " A"]:
    """Mean over time, batch and agents of softmax(Q) over available actions, weighted (0 for padding)."""
    policy = torch.softmax(q_values.masked_fill(~avail, -torch.inf), dim=-1)
    weight = weight.expand(policy.shape[:-1]).to(policy.dtype).unsqueeze(-1)
    policy = torch.where(weight > 0, policy * weight, 0)  # padding has no available action: a softmax of nothing
    return policy.flatten(0, -2).sum(dim=0) / weight.sum().clamp_min(1)


def kl_divergence(p: Float[Tensor, " A"], q: Float[Tensor, " A"]) -> float:
    """KL(p || q) in nats; actions that p never takes count nothing."""
    eps = torch.finfo(p.dtype).tiny
    return float(torch.xlogy(p, p.clamp_min(eps) / q.clamp_min(eps)).sum())


class ResetTrigger:
    """When to reset: every `interval` env steps, or when the policy moved far.

    Args:
        kind: periodic, adaptive or off.
        interval: env steps between periodic resets; also no periodic reset within it of the end.
        kl_threshold: of the adaptive kind, between the mean policies of successive checks.
    """

    MIN_GAP = 1000  # env steps between two adaptive resets

    def __init__(self, kind: str, interval: int, t_max: int, kl_threshold: float):
        self.kind, self.interval, self.t_max, self.kl_threshold = kind, interval, t_max, kl_threshold
        self.last_reset_t = 0
        self.previous_policy: Tensor | None = None

    def due(self, t_env: int, policy: Float[Tensor, " A"] | None = None) -> bool:
        """Whether to reset now; `policy` is the mean policy, needed by the adaptive kind."""
        if self.kind == "periodic":
            due = t_env - self.last_reset_t >= self.interval and self.t_max - t_env > self.interval
        elif self.kind == "adaptive" and policy is not None:
            before = self.previous_policy
            # A checkpoint is read onto the CPU.
            moved = before is not None and kl_divergence(policy, before.to(policy.device)) > self.kl_threshold
            due = moved and t_env - self.last_reset_t >= self.MIN_GAP
            self.previous_policy = policy
        else:
            due = False
        if due:
            self.last_reset_t = t_env
        return due

    def state_dict(self) -> dict[str, int | Tensor | None]:
        """Time of the last reset and the policy of the last check."""
        return {"last_reset_t": self.last_reset_t, "previous_policy": self.previous_policy}

    def load_state_dict(self, state: dict) -> None:
        """Take both back."""
        self.last_reset_t, self.previous_policy = state["last_reset_t"], state["previous_policy"]
