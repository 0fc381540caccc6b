"""Targets of value learning, as pure functions of tensors, and the target networks that they come from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def greedy_actions(q_values: Float[Tensor, "*n A"], avail: Bool[Tensor, "*n A"]) -> Tensor:
    """The best available action; an unavailable one never wins."""
    return q_values.masked_fill(~avail, -torch.inf).argmax(dim=-1)


def double_q_values(
    online: Float[Tensor, "*n A"], target: Float[Tensor, "*n A"], avail: Bool[Tensor, "*n A"]
) -> Float[Tensor, "*n"]:
    """Value by the target network of the action that the online network prefers (van Hasselt et al., 2016)."""
    return target.gather(-1, greedy_actions(online, avail).unsqueeze(-1)).squeeze(-1)


def one_step(
    reward: Float[Tensor, "T B"], terminated: Bool[Tensor, "T B"], next_value: Float[Tensor, "#K T B"], gamma: float
) -> Float[Tensor, "#K T B"]:
    """`r + gamma (1 - terminated) V(s')`; a time limit does not end the bootstrap."""
    return reward + gamma * next_value * (~terminated).to(next_value.dtype)


def td_lambda(
    reward: Float[Tensor, "T B"],
    terminated: Bool[Tensor, "T B"],
    filled: Bool[Tensor, "T B"],
    next_value: Float[Tensor, "#K T B"],
    gamma: float,
    lambda_: float,
) -> Float[Tensor, "#K T B"]:
    """`G_t = r + gamma (1 - terminated) ((1 - lambda) V(s') + lambda G_{t+1})` (Sutton & Barto, 2nd ed., 12.3).

    After the last filled step there is no `G_{t+1}`: a time limit bootstraps from V(s') alone.
    """
    discount = gamma * (~terminated).to(next_value.dtype)
    followed = torch.cat([filled[1:], torch.zeros_like(filled[:1])])
    share = lambda_ * discount * followed  # of G_{t+1}
    targets = reward + (discount - share) * next_value
    at, shares = targets.unbind(1), share.unbind(0)
    for t in range(len(at) - 2, -1, -1):
        at[t].addcmul_(shares[t], at[t + 1])
    return targets


class Followed:
    """What a target network follows: its parameters and buffers, listed once, because modules list them slowly."""

    def __init__(self, target: nn.Module, online: nn.Module):
        self.parameters: tuple[list[Tensor], list[Tensor]] = [*target.parameters()], [*online.parameters()]
        self.buffers = [*target.buffers()], [*online.buffers()]

    @torch.no_grad()
    def move(self, share: float) -> None:
        """Move the target's parameters by `share` of the way to the online network's, and copy its buffers."""
        if self.parameters[0]:
            torch._foreach_lerp_(*self.parameters, share)
        if self.buffers[0]:
            torch._foreach_copy_(*self.buffers)  # the EMA is an average already
