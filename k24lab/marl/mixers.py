"""From the agents' chosen Q-values to the team's."""

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
        """`q_tot`, monotone in every q_n because the mixing weights are absolute values."""
        w1 = self.hyper_w1(state).abs().unflatten(-1, (self.n_agents, self.embed_dim))  # [T, B, N, E]
        hidden = F.elu(torch.einsum("ntb,tbne->tbe", q, w1) + self.hyper_b1(state))
        q_tot = (hidden * self.hyper_w2(state).abs()).sum(dim=-1) + self.value(state).squeeze(-1)
        return q_tot.unsqueeze(0)


def build_mixer(mixer: str, n_agents: int, state_dim: int, embed_dim: int) -> nn.Module:
    """The mixer of a name: vdn, qmix or none."""
    if mixer == "qmix":
        return QMIXMixer(n_agents, state_dim, embed_dim)
    return VDNMixer() if mixer == "vdn" else IndependentMixer()
