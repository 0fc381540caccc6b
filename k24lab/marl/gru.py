"""A GRU over whole sequences for N agents with weights of their own, in one batched matmul per time step.

torch has no GRU with a weight per batch entry; one call an agent costs N times as many small operations.
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
        n_agents, steps, batch, size = gate_x.shape[0], gate_x.shape[1], gate_x.shape[2], hidden.shape[-1]
        h = gate_x.new_empty(n_agents, steps + 1, batch, size)  # h[:, t] enters step t
        gates = torch.empty_like(gate_x)  # r, z, and what the hidden state contributes to n
        n = gate_x.new_empty(n_agents, steps, batch, size)
        h[:, 0] = hidden
        transposed, bias = weight.mT, bias.unsqueeze(1)
        for t in range(steps):
            gate = gates[:, t]
            torch.baddbmm(bias, h[:, t], transposed, out=gate)
            gate[..., : 2 * size].add_(gate_x[:, t, :, : 2 * size]).sigmoid_()
            r, z, gate_n = gate.split(size, dim=-1)
            torch.addcmul(gate_x[:, t, :, 2 * size :], r, gate_n, out=n[:, t]).tanh_()
            torch.lerp(n[:, t], h[:, t], z, out=h[:, t + 1])
        ctx.save_for_backward(h, gates, n, weight)
        return h[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, gates, n, weight = ctx.saved_tensors
        (grad,) = grads
        size = n.shape[-1]
        by_x, by_h = torch.empty_like(gates), torch.empty_like(gates)  # gradients to the two sides' gates
        carry = torch.zeros_like(h[:, 0])
        for t in range(n.shape[1] - 1, -1, -1):
            carry = carry + grad[:, t]
            r, z, gate_n = gates[:, t].split(size, dim=-1)
            by_r, by_z, by_gate_n = by_h[:, t].split(size, dim=-1)
            by_n = by_x[:, t, :, 2 * size :]
            kept = carry * z
            tanh_backward(carry - kept, n[:, t], grad_input=by_n)
            torch.mul(by_n, r, out=by_gate_n)
            sigmoid_backward(by_n * gate_n, r, grad_input=by_r)
            sigmoid_backward((h[:, t] - n[:, t]).mul_(carry), z, grad_input=by_z)
            by_x[:, t, :, : 2 * size] = by_h[:, t, :, : 2 * size]
            carry = torch.baddbmm(kept, by_h[:, t], weight)
        flat = by_h.flatten(1, 2)
        return by_x, carry, torch.bmm(flat.mT, h[:, :-1].flatten(1, 2)), flat.sum(dim=1)


def batched_gru(
    gate_x: Float[Tensor, "N T B G"],
    hidden: Float[Tensor, "N B H"],
    weight: Float[Tensor, "N G H"],
    bias: Float[Tensor, "N G"],
) -> Float[Tensor, "N T B H"]:
    """Hidden states of all time steps; the same numbers as torch.nn.GRU for each agent alone.

    Args:
        gate_x: what the input contributes to the gates (r, z, n; G = 3H), with its bias.
        hidden: before the first step.
        weight: hidden-to-hidden matrix of each agent.
        bias: of the hidden-to-hidden product.
    """
    return _BatchedGRU.apply(gate_x, hidden, weight, bias)
