"""What agents can have of their own at little cost: a gain and a bias of each neuron, or columns for their ids."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Gains(nn.Module):
    """A gain and a bias of each agent for each neuron of a layer: agent i computes `(1 + g_i) * (W x) + b + c_i`.

    g and c start at zero, so that agents are alike until their gradients part them. They are the output side of
    BatchEnsemble's rank-one factors (Wen et al., ICLR 2020), with a bias added.

    Args:
        n_agents: N, agents or unit types.
        out_features: neurons of the layer.
    """

    def __init__(self, n_agents: int, out_features: int):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(n_agents, out_features))
        self.bias = nn.Parameter(torch.zeros(n_agents, out_features))

    @property
    def own(self) -> list[nn.Parameter]:
        """Parameters that belong to single agents."""
        return [self.gain, self.bias]

    def forward(
        self, weight: Float[Tensor, "K out in"], bias: Float[Tensor, "Kb out"]
    ) -> tuple[Float[Tensor, "N out in"], Float[Tensor, "N out"]]:
        """The matrix and bias of each agent, from the common one (K = 1) or from each agent's masked one (K = N)."""
        return weight * (1 + self.gain).unsqueeze(2), bias + self.bias


@torch.no_grad()
def shrink_to_mean(
    deviation: Float[Tensor, "N out"],
    mean_grad: Float[Tensor, "N out"],
    mean_square: Float[Tensor, "N out"],
    rate: float,
) -> None:
    """Move the deviations of agents towards the team's mean, by `rate` times the share of noise in their gradients.

    The share is `1 - m^2 / v` of Adam's two moments: 0 where all gradients of late had one value, 1 where they cancel.
    """
    noise = 1 - (mean_grad.square() / mean_square.clamp_min(1e-30)).clamp(max=1)
    deviation.lerp_(deviation.mean(dim=0, keepdim=True).expand_as(deviation), noise.mul_(rate).clamp_(max=1))


class IdLinear(nn.Module):
    """A dense layer for all agents, whose columns for the one-hot ids behind the observation are a parameter apart.

    So ids can learn at a rate of their own; otherwise it is `DenseLinear`, and starts with the same numbers.
    """

    def __init__(self, in_features: int, out_features: int, n_agents: int):
        super().__init__()
        bound = 1 / math.sqrt(in_features)  # as torch.nn.Linear
        weight = torch.empty(1, out_features, in_features).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight[:, :, : in_features - n_agents].clone())
        self.ids = nn.Parameter(weight[:, :, in_features - n_agents :].clone())
        self.bias = nn.Parameter(torch.empty(1, out_features).uniform_(-bound, bound))

    @property
    def own(self) -> list[nn.Parameter]:
        """Parameters that belong to single agents."""
        return [self.ids]

    def effective(self) -> tuple[Float[Tensor, "1 out in"], Float[Tensor, "1 out"]]:
        """What the layer computes with."""
        return torch.cat([self.weight, self.ids], dim=2), self.bias
