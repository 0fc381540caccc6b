"""One time step of a team in plain torch, whatever multiplies by its matrices."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Apply = Callable[[str, Tensor], Tensor]  # a layer by name: new memory at each call


def team_step(
    apply: Apply, x: Float[Tensor, "K B in"], hidden: Float[Tensor, "K B H"]
) -> tuple[Float[Tensor, "K B A"], Float[Tensor, "K B H"]]:
    """Q-values and the next hidden state."""
    gate_x, gate_h = apply("rnn_input", apply("fc1", x).relu_()), apply("rnn_hidden", hidden)
    size = hidden.shape[-1]
    r, z = (gate_x[..., : 2 * size] + gate_h[..., : 2 * size]).sigmoid_().split(size, dim=-1)
    candidate = torch.addcmul(gate_x[..., 2 * size :], r, gate_h[..., 2 * size :]).tanh_()
    after = torch.lerp(candidate, hidden, z)
    return apply("fc4", apply("fc3", apply("fc2", after).relu_()).relu_()), after


def batched(matrices: Mapping[str, tuple[Float[Tensor, "Kw out in"], Float[Tensor, " out"]]]) -> Apply:
    """One batched product a layer for all networks; one matrix may serve any number of them."""
    transposed = {name: (weight.mT.contiguous(), bias) for name, (weight, bias) in matrices.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        weight, bias = transposed[name]
        return torch.baddbmm(bias, x, weight.expand(len(x), -1, -1))

    return apply
