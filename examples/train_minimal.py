"""K-2:4 in one file: three agents share one network, and each learns a 2:4 mask of its own over the weights.

In RoleNav agent i must reach goal i, but its observation does not tell it that it is agent i. Agents that behave alike
return at most 1.45 per episode; agents that know who they are can return about 3. Here only the masks tell them apart.

The algorithm is 1-step double Q-learning with VDN. An observation of RoleNav holds all that an agent needs to know
besides its index, so this network is feed-forward and learns from single steps. The network of `k24lab train` has a
GRU and learns from whole episodes.

    python examples/train_minimal.py --seed 0
"""

import copy
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from k24lab.core.config import MaskConfig
from k24lab.core.diversity import K24DiversityManager, PatternOrthogonalityLoss
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks, draw_masks
from k24lab.core.schedules import linear, mask_temperature
from k24lab.envs.base import EnvSpec
from k24lab.envs.rolenav import RoleNav


@dataclass(frozen=True)
class Settings:
    """Settings of the run; the masks have the defaults of `k24lab.core.config.MaskConfig`."""

    seed: int = 0
    n_rollouts: int = 80  # a rollout is one episode in each environment
    n_envs: int = 32
    updates_per_rollout: int = 10
    batch_size: int = 256  # steps
    buffer_size: int = 40  # rollouts
    hidden_dim: int = 64
    lr: float = 3e-3  # falls linearly to 0, because weights that still change also change the masks
    alpha_lr_factor: float = 20.0  # hetero_alpha, the parameter of the masks, learns this many times faster
    grad_norm_clip: float = 10.0
    gamma: float = 0.95
    polyak: float = 0.01  # how far the target network moves towards the online network at each update
    epsilon_finish: float = 0.05
    epsilon_anneal: float = 0.5  # share of the run
    test_episodes: int = 1000


Network = list[SemiStructuredLinear24]  # layers, with a ReLU after each but the last


class Transitions(NamedTuple):
    """Steps of the team: [T, E] of them in a rollout, [B] in a batch."""

    obs: Float[Tensor, "*steps N O"]
    actions: Int[Tensor, "*steps N"]
    reward: Float[Tensor, "*steps"]
    terminated: Bool[Tensor, "*steps"]  # False at the time limit, where the next observation still has a value
    next_obs: Float[Tensor, "*steps N O"]


def build_network(spec: EnvSpec, hidden_dim: int, config: MaskConfig) -> Network:
    """Four layers; each has one weight matrix for all agents and a mask for each of them."""
    sizes = [spec.obs_dim, hidden_dim, hidden_dim, hidden_dim, spec.action_dim]
    return [SemiStructuredLinear24(sizes[k], sizes[k + 1], spec.n_agents, config=config) for k in range(4)]


def q_values(
    network: Network, masks: list[Tensor], obs: Float[Tensor, "B N O"]
) -> tuple[Float[Tensor, "B N A"], list[Tensor]]:
    """Q-values of each agent under its own masks, and the inputs [N, B, in] of each layer."""
    x = obs.transpose(0, 1)
    inputs: list[Tensor] = []
    for layer, mask in zip(network, masks, strict=True):
        inputs.append(torch.relu(x) if inputs else x)
        x = torch.baddbmm(layer.bias, inputs[-1], (layer.weight * mask).mT)
    return x.transpose(0, 1), inputs


@torch.no_grad()
def rollout(env: RoleNav, network: Network, epsilon: float) -> Transitions:
    """Play one episode in each environment, epsilon-greedy under the argmax masks.

    RoleNav allows every action at every step and ends all episodes at the time limit. In other tasks actions must be
    chosen among `now.avail_actions`, here and in `td_loss`, and steps after the end of an episode left out.
    """
    masks, steps = argmax_masks(network), []
    now = env.reset(seed=int(torch.randint(2**31, ())))
    for _ in range(env.spec.episode_limit):
        greedy = q_values(network, masks, now.obs)[0].argmax(dim=-1)
        random = torch.randint_like(greedy, env.spec.action_dim)
        actions = torch.where(torch.rand(greedy.shape) < epsilon, random, greedy)
        obs, now = now.obs, env.step(actions)
        steps.append(Transitions(obs, actions, now.reward, now.terminated, now.obs))
    return Transitions(*map(torch.stack, zip(*steps, strict=True)))


def td_loss(
    network: Network, target: Network, masks: list[Tensor], batch: Transitions, gamma: float
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """Huber loss of `sum_i Q_i(o_i, a_i)` against `r + gamma sum_i Q'_i(o'_i, argmax_a Q_i(o'_i, a))`, Q' the target.

    The sums over agents are VDN (Sunehag et al., 2018); the argmax is that of double Q-learning (van Hasselt et al.,
    2016). Also returns the inputs of each layer.
    """
    q, inputs = q_values(network, masks, batch.obs)
    q_tot = q.gather(-1, batch.actions.unsqueeze(-1)).sum(dim=(1, 2))
    with torch.no_grad():
        best = q_values(network, masks, batch.next_obs)[0].argmax(dim=-1, keepdim=True)
        next_q_tot = q_values(target, argmax_masks(target), batch.next_obs)[0].gather(-1, best).sum(dim=(1, 2))
    return F.huber_loss(q_tot, batch.reward + gamma * next_q_tot * ~batch.terminated), inputs


@torch.no_grad()
def update_averages(network: Network, target: Network, inputs: list[Tensor], polyak: float) -> None:
    """Move the running means of |x|, which are part of the scores of the masks, and the target network."""
    for layer, target_layer, x in zip(network, target, inputs, strict=True):
        layer.ema_tracker.update(x.abs().mean(dim=1))
        target_layer.ema_tracker.load_state_dict(layer.ema_tracker.state_dict())
        for parameter, target_parameter in zip(layer.parameters(), target_layer.parameters(), strict=True):
            target_parameter.lerp_(parameter, polyak)


def train(s: Settings) -> Network:
    """Train a team and print its greedy return on the way."""
    torch.manual_seed(s.seed)
    env, config = RoleNav(s.n_envs), MaskConfig()
    network = build_network(env.spec, s.hidden_dim, config)
    target = copy.deepcopy(network)
    weights = [parameter for layer in network for parameter in (layer.weight, layer.bias)]
    alphas = [layer.hetero_alpha for layer in network]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": alphas}], fused=True)
    orthogonality, diversity = PatternOrthogonalityLoss(), K24DiversityManager(cap=config.diversity_coef_max)
    replay: deque[Transitions] = deque(maxlen=s.buffer_size)
    for k in range(s.n_rollouts):
        progress = k / s.n_rollouts
        replay.append(rollout(env, network, linear(1.0, s.epsilon_finish, progress / s.epsilon_anneal)))
        memory = Transitions(*(torch.cat(parts).flatten(0, 1) for parts in zip(*replay, strict=True)))
        for group, factor in zip(optimizer.param_groups, (1.0, s.alpha_lr_factor), strict=True):
            group["lr"] = factor * linear(s.lr, 0.0, progress)
        for _ in range(s.updates_per_rollout):
            chosen = torch.randint(len(memory.reward), (s.batch_size,))
            batch = Transitions(*(part[chosen] for part in memory))
            # After the annealing, learning uses the argmax masks, as acting does.
            noise = config.noise if progress < config.anneal_end else "none"
            draw = draw_masks(network, mask_temperature(config, progress), config.logit_scale, noise)
            loss, inputs = td_loss(network, target, draw.masks, batch, s.gamma)
            similarity = orthogonality(draw.pattern_probs)  # of two agents' masks; its weight follows the TD loss
            optimizer.zero_grad()
            (loss + diversity.coefficient(loss.item(), similarity.item()) * similarity).backward()
            for group in optimizer.param_groups:  # separately: the gradient of alpha grows as the temperature falls
                nn.utils.clip_grad_norm_(group["params"], s.grad_norm_clip)
            optimizer.step()
            update_averages(network, target, inputs, s.polyak)
        if k % 10 == 9:
            print(f"rollout {k + 1:3}: loss {loss.item():.4f}, greedy return {greedy_return(network, 100):.2f}")
    return network


def greedy_return(network: Network, n_episodes: int) -> float:
    """Mean return of greedy episodes under the argmax masks."""
    return rollout(RoleNav(n_episodes), network, epsilon=0.0).reward.sum(dim=0).mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads do not make such small matrices faster
    settings = tyro.cli(Settings)
    mean_return = greedy_return(train(settings), settings.test_episodes)
    print(f"mean greedy return of {settings.test_episodes} episodes: {mean_return:.3f}")
