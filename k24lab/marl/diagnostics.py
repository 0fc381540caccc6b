"""What is logged about values and masks, as functions of one update."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from k24lab.errors import RunError

MOST_NAMED = 4  # tensors, in a message


def gradient_norms(losses: Mapping[str, Tensor | float], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Norm of the gradient of each loss to all parameters together; 0 for a loss that does not depend on them."""
    norms = {}
    for name, loss in losses.items():
        grads: tuple[Tensor, ...] = ()
        if isinstance(loss, Tensor) and loss.requires_grad:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        norms[name] = nn.utils.get_total_norm(grads).item()
    return norms


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all entries together; `torch.nn.utils.get_total_norm` without its sorting by device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))) if tensors else torch.zeros(())


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


@torch.no_grad()
def value_metrics(td_error: Tensor, chosen_q: Tensor, targets: Tensor, filled: Tensor) -> dict[str, float]:
    """Means over the filled steps: |TD error|, the Q-value of the chosen actions, and the targets."""
    count = filled.sum()
    named = {"td_error_abs": td_error.abs(), "q_taken_mean": chosen_q, "target_mean": targets}
    return {name: ((value * filled).sum() / count).item() for name, value in named.items()}
