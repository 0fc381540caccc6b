"""HyperMARL's layers, whose weights an MLP makes from a learned embedding of the agent (Tessera et al., NeurIPS 2025).

As in its recurrent networks the embedding layer before the GRU and the GRU are shared and dense, and the layers behind
it are generated. Sizes and starts are those of its public code: orthogonal embeddings, an MLP of one hidden layer for
the weights and one for the biases of each layer, and heads that start as one orthogonal matrix for each hidden unit.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

HIDDEN = 64  # units of each MLP
GAIN = math.sqrt(2)  # of orthogonal starts


def fresh_embedding(n_agents: int, size: int) -> nn.Parameter:
    """An embedding for each agent; orthogonal to each other as long as `size` allows."""
    return nn.Parameter(nn.init.orthogonal_(torch.empty(n_agents, size), GAIN))


class HyperLinear(nn.Module):
    """A layer whose matrix and bias are functions of each agent's embedding.

    Args:
        in_features: of the layer.
        out_features: of the layer.
        embedding: [N, E]; all layers of a network have the same one.
        gain: of the orthogonal matrices that the head starts with.
    """

    def __init__(self, in_features: int, out_features: int, embedding: nn.Parameter, gain: float = GAIN):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.embedding = embedding
        size = embedding.shape[1]
        self.for_weight, self.for_bias = (_hidden_layer(size) for _ in range(2))
        self.weight_head = nn.Linear(HIDDEN, in_features * out_features)
        self.bias_head = nn.Linear(HIDDEN, out_features)
        with torch.no_grad():
            starts = [nn.init.orthogonal_(torch.empty(out_features, in_features), gain) for _ in range(HIDDEN)]
            self.weight_head.weight.copy_(torch.stack(starts).flatten(1).T)
            for zero in (self.weight_head.bias, self.bias_head.weight, self.bias_head.bias):
                zero.zero_()

    def effective(self) -> tuple[Float[Tensor, "N out in"], Float[Tensor, "N out"]]:
        """What each agent computes with."""
        weight = self.weight_head(self.for_weight(self.embedding).relu())
        bias = self.bias_head(self.for_bias(self.embedding).relu())
        return weight.unflatten(1, (self.out_features, self.in_features)), bias


def _hidden_layer(size: int) -> nn.Linear:
    layer = nn.Linear(size, HIDDEN)
    nn.init.orthogonal_(layer.weight, GAIN)
    nn.init.zeros_(layer.bias)
    return layer
