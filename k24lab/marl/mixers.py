"""From the agents' chosen Q-values to the team's."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class IndependentMixer(nn.Module):
    """Independent Q-learning: every agent is its own team (and gets the team reward)."""

    def forward(self, q: Float[Tensor, "N T B"], state: Float[Tensor, "T B S"]) -> Float[Tensor, "N T B"]:
        """Leave q as it is."""
        return q


class VDNMixer(nn.Module):
    """Sum over agents (Sunehag et al., 2018)."""

    def forward(self, q: Float[Tensor, "N T B"], state: Float[Tensor, "T B S"]) -> Float[Tensor, "1 T B"]:
        """`q_tot = sum_n q_n`."""
        return q.sum(dim=0, keepdim=True)


def _product(weight: Any, bias: Any, x: Float[Tensor, "in columns"]) -> Float[Tensor, "out columns"]:
    return torch.addmm(bias.unsqueeze(1), weight, x)


class QMIXMixer(nn.Module):
    """Monotonic mixing with weights from the state (Rashid et al., 2018; pymarl's sizes)."""

    def __init__(self, n_agents: int, state_dim: int, embed_dim: int = 32, hypernet_dim: int = 64):
        super().__init__()
        self.n_agents, self.embed_dim = n_agents, embed_dim
        self.hyper_w1 = nn.Sequential(
            nn.Linear(state_dim, hypernet_dim), nn.ReLU(), nn.Linear(hypernet_dim, n_agents * embed_dim)
        )
        self.hyper_b1 = nn.Linear(state_dim, embed_dim)
        self.hyper_w2 = nn.Sequential(nn.Linear(state_dim, hypernet_dim), nn.ReLU(), nn.Linear(hypernet_dim, embed_dim))
        self.value = nn.Sequential(nn.Linear(state_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, 1))

    def forward(self, q: Float[Tensor, "N T B"], state: Float[Tensor, "T B S"]) -> Float[Tensor, "1 T B"]:
        """`q_tot`, monotone in every q_n because the mixing weights are absolute values.

        Features come before time steps and episodes, as in the networks; what reads the state does so in one product.
        """
        from_state = (self.hyper_w1[0], self.hyper_w2[0], self.value[0], self.hyper_b1)
        sizes = [layer.out_features for layer in from_state]
        weight, bias = (torch.cat([getattr(layer, name) for layer in from_state]) for name in ("weight", "bias"))
        *hidden, b1 = _product(weight, bias, state.flatten(0, 1).T).split(sizes)
        w1, w2, value = (
            _product(net[2].weight, net[2].bias, x.relu())
            for net, x in zip((self.hyper_w1, self.hyper_w2, self.value), hidden, strict=True)
        )
        w1 = w1.abs().unflatten(0, (self.n_agents, self.embed_dim))
        mixed = F.elu((q.flatten(1).unsqueeze(1) * w1).sum(dim=0) + b1)
        return ((mixed * w2.abs()).sum(dim=0, keepdim=True) + value).view(1, *q.shape[1:])


def build_mixer(mixer: str, n_agents: int, state_dim: int, embed_dim: int) -> nn.Module:
    """The mixer of a name: vdn, qmix or none."""
    if mixer == "qmix":
        return QMIXMixer(n_agents, state_dim, embed_dim)
    return VDNMixer() if mixer == "vdn" else IndependentMixer()
