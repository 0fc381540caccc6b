"""What is logged about values and masks, as functions of one update."""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from k24lab.core.baselines import ThresholdLinear
from k24lab.core.diversity import similarity_stats
from k24lab.core.masks import MaskDraw
from k24lab.core.patterns import N_PATTERNS
from k24lab.errors import RunError

MOST_NAMED = 4  # tensors, in a message


def mask_metrics(
    draw: MaskDraw,
    best_index: Int[Tensor, "M groups"],
    logged_index: Int[Tensor, "M groups"] | None,
    layer_names: list[str],
) -> dict[str, float]:
    """Similarity, sparsity, pattern usage, entropy and flips (METHOD section 6).

    Args:
        draw: the masks of the update.
        best_index: argmax patterns now.
        logged_index: argmax patterns at the last logging step; None: no flip rate yet.
        layer_names: of the masks in `draw`.

    Returns:
        `pattern_entropy` in nats, mean over groups, log 6 = 1.79 at most; the others are shares in [0, 1].
    """
    probs = draw.pattern_probs.detach()
    metrics = {f"pattern_{k}_similarity": v for k, v in similarity_stats(probs).items()}
    for name, mask in zip(layer_names, draw.masks, strict=True):
        metrics[f"sparsity_layer_{name}"] = 1.0 - mask.detach().mean().item()
    usage = torch.bincount(draw.pattern_index.flatten(), minlength=N_PATTERNS) / draw.pattern_index.numel()
    metrics |= {f"pattern_{p}_prob": share.item() for p, share in enumerate(usage)}
    metrics["pattern_entropy"] = -torch.xlogy(probs, probs).sum(dim=0).mean().item()
    if logged_index is not None:
        metrics["mask_flip_rate"] = (best_index != logged_index).float().mean().item()
    return metrics


def gradient_norms(losses: Mapping[str, Tensor | float], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Norm of the gradient of each loss to all parameters together; 0 for a loss that does not depend on them."""
    norms = {}
    for name, loss in losses.items():
        grads: tuple[Tensor, ...] = ()
        if isinstance(loss, Tensor) and loss.requires_grad:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        norms[name] = nn.utils.get_total_norm(grads).item()
    return norms


def refuse_nonfinite(loss_td: float, grad_norm: float, networks: Iterable[nn.Module], t_env: int) -> None:
    """Stop before a loss or a gradient that is no number spoils the weights.

    Raises:
        RunError: with the weights, or where those are sound the gradients, that are not finite.
    """
    if math.isfinite(loss_td) and math.isfinite(grad_norm):
        return
    weights = [(name, p) for network in networks for name, p in network.named_parameters()]
    gradients = [(f"gradient of {name}", p.grad) for name, p in weights if p.grad is not None]
    found = [name for name, x in weights if not x.isfinite().all()]
    found = found or [name for name, x in gradients if not x.isfinite().all()]
    # What lies nearest to the loss comes last in a network, and its gradient is the first to be spoilt.
    where = ", ".join(found[::-1][:MOST_NAMED]) or "Q-values or targets, not the weights"
    raise RunError(
        f"at t_env = {t_env} loss_td = {loss_td:g}, grad_norm = {grad_norm:g}: not finite are {where}; the last "
        "checkpoint is from before; try a lower lr"
    )


def value_metrics(td_error: Tensor, chosen_q: Tensor, targets: Tensor, filled: Tensor) -> dict[str, float]:
    """Means over the filled steps: |TD error|, the Q-value of the chosen actions, and the targets."""
    count = filled.sum()
    named = {"td_error_abs": td_error.detach().abs(), "q_taken_mean": chosen_q, "target_mean": targets}
    return {name: ((value * filled).sum() / count).item() for name, value in named.items()}


def threshold_metrics(layers: Mapping[str, ThresholdLinear], n_resets: int) -> dict[str, float]:
    """Of Kaleidoscope: the share that its masks drop of each layer, and resets so far; nothing without thresholds."""
    sparsity = {f"sparsity_layer_{name}": layer.sparsity().mean().item() for name, layer in layers.items()}
    return sparsity | ({"n_resets": float(n_resets)} if layers else {})
