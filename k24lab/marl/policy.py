"""A trained team as arrays: its masks, and what its agents would do on the same observations."""

import numpy as np
import torch

from k24lab.marl.agents import unroll
from k24lab.marl.learner import K24QLearner
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs
from k24lab.sparsity.masks import groups_per_layer


def pattern_arrays(learner: K24QLearner, t_env: int) -> dict[str, np.ndarray]:
    """`<layer>/pattern_index` [M, out, G] (argmax) and `<layer>/pattern_probs` [M, out, G, 6] of every masked layer."""
    layers, draw = learner.masked_layers, learner.best_draw(t_env)
    sizes = groups_per_layer(list(layers.values()))
    arrays = {}
    for (name, layer), index, probs in zip(
        layers.items(), draw.pattern_index.split(sizes, dim=1), draw.pattern_probs.split(sizes, dim=2), strict=True
    ):
        shape = (layer.n_masks, layer.out_features, -1)
        arrays[f"{name}/pattern_index"] = index.reshape(shape).to(torch.uint8).cpu().numpy()
        arrays[f"{name}/pattern_probs"] = probs.permute(1, 2, 0).reshape(*shape, len(probs)).half().cpu().numpy()
    return arrays


@torch.no_grad()
def behaviour(learner: K24QLearner, batch: EpisodeBatch, n_episodes: int) -> dict[str, np.ndarray]:
    """Q-values of every policy on everybody's observation histories, in agreement with the argmax masks.

    Returns:
        `q_values` [M, S, A] and `avail_actions` [S, A], M policies (of agents or unit types), S running over
        living units observed, time and episodes.
    """
    n_agents, n_policies = learner.spec.n_agents, learner.n_masks
    obs = batch.obs[:n_episodes, :-1].permute(1, 0, 2, 3).flatten(1, 2)  # [T, episodes * N, O]
    obs = obs.unsqueeze(2).expand(-1, -1, n_policies, -1)  # every policy sees every history
    inputs = agent_inputs(obs, learner.config.agent_id).permute(2, 3, 0, 1).contiguous()
    hidden = learner.agent.initial_hidden(n_policies, inputs.shape[3])
    q_values = unroll(learner.argmax_weights(), inputs, hidden).q_values.permute(0, 2, 3, 1)
    filled = batch.filled[:n_episodes].T.repeat_interleave(n_agents, dim=1)  # [T, episodes * N]
    played = filled & batch.alive[:n_episodes, :-1].transpose(0, 1).flatten(1)
    avail = batch.avail_actions[:n_episodes, :-1].permute(1, 0, 2, 3).flatten(1, 2)
    return {"q_values": q_values[:, played].cpu().numpy(), "avail_actions": avail[played].cpu().numpy()}
