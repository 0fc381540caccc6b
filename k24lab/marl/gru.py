"""A GRU over whole sequences for N agents with weights of their own, in one batched matmul per time step.

torch has no GRU with a weight per batch entry; one call an agent costs N times as many small operations.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class _BatchedGRU(torch.autograd.Function):
    """Backpropagation through time written out: the local derivatives of all steps at once, one bmm a step."""

    @staticmethod
    def forward(ctx: Any, gate_x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        n_agents, steps, batch, size = gate_x.shape[0], gate_x.shape[1], gate_x.shape[2], hidden.shape[-1]
        h = gate_x.new_empty(n_agents, steps + 1, batch, size)  # h[:, t] enters step t
        rz = gate_x.new_empty(n_agents, steps, batch, 2 * size)
        n, gate_n = gate_x.new_empty(2, n_agents, steps, batch, size)
        h[:, 0] = hidden
        transposed, bias = weight.mT, bias.unsqueeze(1)
        for t in range(steps):
            gate_h = torch.baddbmm(bias, h[:, t], transposed)
            torch.add(gate_x[:, t, :, : 2 * size], gate_h[..., : 2 * size], out=rz[:, t]).sigmoid_()
            gate_n[:, t] = gate_h[..., 2 * size :]
            r, z = rz[:, t].chunk(2, dim=-1)
            torch.addcmul(gate_x[:, t, :, 2 * size :], r, gate_n[:, t], out=n[:, t]).tanh_()
            torch.lerp(n[:, t], h[:, t], z, out=h[:, t + 1])
        ctx.save_for_backward(h, rz, n, gate_n, weight)
        return h[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, rz, n, gate_n, weight = ctx.saved_tensors
        (grad,) = grads
        size = n.shape[-1]
        r, z = rz.chunk(2, dim=-1)
        # Derivatives of h[t + 1] by the three gates before their nonlinearity.
        by_n = (1 - z) * (1 - n * n)
        by_gates = torch.cat([by_n * gate_n * r * (1 - r), (h[:, :-1] - n) * z * (1 - z), by_n * r], dim=-1)
        grad_h_gates = torch.empty_like(by_gates)  # of what comes from the hidden state
        carry = torch.zeros_like(h[:, 0])
        for t in range(n.shape[1] - 1, -1, -1):
            carry = carry + grad[:, t]
            gates = grad_h_gates[:, t].unflatten(-1, (3, size))
            torch.mul(by_gates[:, t].unflatten(-1, (3, size)), carry.unsqueeze(-2), out=gates)
            by_n[:, t] *= carry
            carry = torch.baddbmm(carry * z[:, t], grad_h_gates[:, t], weight)
        grad_x_gates = torch.cat([grad_h_gates[..., : 2 * size], by_n], dim=-1)
        flat = grad_h_gates.flatten(1, 2)
        grad_weight = torch.bmm(flat.mT, h[:, :-1].flatten(1, 2))
        return grad_x_gates, carry, grad_weight, flat.sum(dim=1)


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
