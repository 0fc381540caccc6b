"""The six 2:4 patterns and what can be done with them, for any scores.

Tensors over patterns have the pattern axis first, [6, M, groups]: a reduction over six neighbouring numbers
is about ten times slower on a CPU than over six planes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from k24lab.core.pattern_table import GROUP_SIZE, N_PATTERNS, PATTERN_NAMES as PATTERN_NAMES, PATTERNS_24


def pattern_matrix(like: Tensor) -> Float[Tensor, "6 4"]:
    """`PATTERNS_24` with the device and dtype of `like`."""
    return torch.tensor(PATTERNS_24, device=like.device, dtype=like.dtype)


def n_groups(in_features: int) -> int:
    """Groups of four in a row of `in_features` weights, the last one padded."""
    return -(-in_features // GROUP_SIZE)


def group_scores(scores: Float[Tensor, "M out in"], padding: float = 0.0) -> Float[Tensor, "M groups 4"]:
    """Pad the input side to a multiple of 4 and list all groups, row after row (groups = out * G).

    Args:
        padding: score of an entry that does not exist.
    """
    missing = -scores.shape[-1] % GROUP_SIZE
    return F.pad(scores, (0, missing), value=padding).reshape(scores.shape[0], -1, GROUP_SIZE)


def ungroup(grouped: Float[Tensor, "M groups 4"], out_features: int, in_features: int) -> Float[Tensor, "M out in"]:
    """Undo `group_scores`: rows of weights again, the padding cut off."""
    return grouped.reshape(grouped.shape[0], out_features, -1)[..., :in_features]


def pattern_logits(grouped: Float[Tensor, "M groups 4"]) -> Float[Tensor, "6 M groups"]:
    """Score that each pattern keeps: the sum of the two entries it selects."""
    planes = grouped.permute(2, 0, 1).reshape(GROUP_SIZE, -1)
    return (pattern_matrix(grouped) @ planes).reshape(N_PATTERNS, *grouped.shape[:2])


def masks_from_index(index: Int[Tensor, "M groups"], like: Tensor) -> Float[Tensor, "M groups 4"]:
    """The 0/1 groups of the given pattern indices, in the dtype of `like`."""
    return F.embedding(index, pattern_matrix(like))


def expected_masks(probs: Float[Tensor, "6 M groups"]) -> Float[Tensor, "M groups 4"]:
    """Probability of each entry to be kept; differentiable."""
    planes = pattern_matrix(probs).T @ probs.flatten(1)
    return planes.reshape(GROUP_SIZE, *probs.shape[1:]).permute(1, 2, 0)


def sample_index(probs: Float[Tensor, "6 M groups"], uniform: Float[Tensor, "M groups"]) -> Int[Tensor, "M groups"]:
    """Draw one pattern per group with the given probabilities.

    Inverse transform sampling: the distribution of Gumbel-max with a sixth of the random numbers.
    """
    cumulative = probs.cumsum(dim=0)
    u = uniform * cumulative[-1]  # rounding may leave the total a little off 1
    index = torch.zeros_like(u, dtype=torch.int32)
    for plane in cumulative[:-1]:
        index += plane <= u
    return index


def best_index(logits: Float[Tensor, "6 M groups"]) -> Int[Tensor, "M groups"]:
    """The pattern of the largest logit of each group, the first one on a tie.

    A running maximum over the planes: torch's argmax over a first axis is far slower.
    """
    best = logits[0]
    index = torch.zeros_like(best, dtype=torch.int32)
    for p in range(1, N_PATTERNS):
        index.masked_fill_(logits[p] > best, p)
        best = torch.maximum(best, logits[p])
    return index
