"""A GRU over whole sequences for K networks with weights of their own, in torch; `k24lab.ops.network` has the kernels'.

torch has no GRU with a weight per batch entry; one call a network costs K times as many small operations.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

tanh_backward, sigmoid_backward = torch.ops.aten.tanh_backward.grad_input, torch.ops.aten.sigmoid_backward.grad_input


class _BatchedGRU(torch.autograd.Function):
    """Backpropagation through time written out; step by step, so that what a step works on stays in the cache."""

    @staticmethod
    def forward(ctx: Any, gate_x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h, saved = _states(gate_x, hidden, weight, bias)
        ctx.save_for_backward(h, saved, weight, bias)
        return h[:, :, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, saved, weight, bias = ctx.saved_tensors
        grad_x, grad_n, grad_hidden = _through_time(grads[0], h, saved, weight)
        r_and_z, n, before = grad_x[:, : 2 * h.shape[1]].flatten(2), grad_n.flatten(2), h[:, :, :-1].flatten(2)
        grad_weight = torch.empty(*grad_x.shape[:2], h.shape[1], dtype=h.dtype, device=h.device)
        for gates, part in ((r_and_z, grad_weight[:, : 2 * h.shape[1]]), (n, grad_weight[:, 2 * h.shape[1] :])):
            torch.bmm(gates, before.mT, out=part)
        grad_bias = torch.cat([r_and_z.sum(dim=2), n.sum(dim=2)], dim=1)
        return grad_x, grad_hidden, grad_weight.sum_to_size(weight.shape), grad_bias.sum_to_size(bias.shape)


def _states(gate_x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states before and after every step (h[:, :, t] enters step t), and what the backward pass needs."""
    size = hidden.shape[1]
    h = hidden.new_empty(*hidden.shape[:2], gate_x.shape[2] + 1, hidden.shape[2])
    h[:, :, 0] = hidden
    saved = gate_x.new_empty(h.shape[0], 4 * size, *gate_x.shape[2:])  # r, z, the hidden side of n, n
    weight, bias = weight.expand(len(h), -1, -1), bias.unsqueeze(2)
    for t in range(gate_x.shape[2]):
        gate = torch.baddbmm(bias, weight, h[:, :, t])
        r_and_z = gate[:, : 2 * size].add_(gate_x[:, : 2 * size, t]).sigmoid_()
        r, z, side = gate.split(size, dim=1)
        n = torch.addcmul(gate_x[:, 2 * size :, t], r, side).tanh_()
        torch.lerp(n, h[:, :, t], z, out=h[:, :, t + 1])
        saved[:, : 2 * size, t], saved[:, 2 * size : 3 * size, t], saved[:, 3 * size :, t] = r_and_z, side, n
    return h, saved


def _through_time(grad: Tensor, h: Tensor, saved: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to gate_x, to the hidden side of gate n (r and z share theirs), and to the first state."""
    size = h.shape[1]
    grad_x, grad_side = torch.empty_like(saved[:, : 3 * size]), torch.empty_like(saved[:, :size])
    carry = torch.zeros_like(h[:, :, 0])
    transposed = weight.mT.expand(len(h), -1, -1)
    for t in range(grad.shape[2] - 1, -1, -1):
        carry = carry + grad[:, :, t]
        r, z, side, n = saved[:, :, t].split(size, dim=1)
        kept = carry * z
        grad_n = tanh_backward(carry - kept, n, grad_input=torch.empty_like(kept))
        grad_r = sigmoid_backward(grad_n * side, r, grad_input=torch.empty_like(kept))
        grad_z = sigmoid_backward((h[:, :, t] - n) * carry, z, grad_input=torch.empty_like(kept))
        grad_x[:, :, t] = torch.cat([grad_r, grad_z, grad_n], dim=1)
        grad_side[:, :, t] = grad_n * r
        carry = torch.baddbmm(kept, transposed, torch.cat([grad_r, grad_z, grad_n * r], dim=1))
    return grad_x, grad_side, carry


def batched_gru(
    gate_x: Float[Tensor, "K G T R"],
    hidden: Float[Tensor, "K H R"],
    weight: Float[Tensor, "Kw G H"],
    bias: Float[Tensor, "Kb G"],
) -> Float[Tensor, "K H T R"]:
    """Hidden states of all time steps; the same numbers as torch.nn.GRU for each network alone.

    Args:
        gate_x: what the input contributes to the gates (r, z, n), with its bias.
        hidden: before the first step.
        weight: hidden-to-hidden matrices, one of each network or one for all.
        bias: of the hidden-to-hidden product, likewise.
    """
    if not torch.is_grad_enabled():  # autograd's own bookkeeping costs acting dearly
        return _states(gate_x, hidden, weight, bias)[0][:, :, 1:]
    return _BatchedGRU.apply(gate_x, hidden, weight, bias)
