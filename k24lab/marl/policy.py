"""The team as it acts: its policy, episodes played with one, its masks, and what its agents would do on one history."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from k24lab.core.masks import groups_per_layer
from k24lab.core.schemes import PatternScheme
from k24lab.envs.base import VecEnv
from k24lab.marl.agent import Weights, step, unroll
from k24lab.marl.batching import Rows
from k24lab.marl.config import TrainingConfig
from k24lab.marl.learner import K24QLearner
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs, collect
from k24lab.marl.seeding import Stream, derive_seed


class Policy(NamedTuple):
    """What `collect` acts with."""

    act: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    initial_hidden: Callable[[int, int], Tensor]


@runtime_checkable
class Team(Protocol):
    """Whose units act: those of a learner, or of a frozen team."""

    @property
    def config(self) -> TrainingConfig:
        """The configuration that it was trained with."""

    def rows(self, unit_type: Int[Tensor, "B N"]) -> Rows:
        """Which unit of these episodes is seen through which mask."""


def acting_weights(learner: K24QLearner, t_env: int, generator: torch.Generator) -> Weights:
    """Effective weights of acting after `t_env` env steps; only acting_masks="drawn" uses the generator."""
    return learner.weights_for("acting", t_env, generator)


def acting_policy(learner: K24QLearner, t_env: int, seed: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One time step of acting, for `collect`: under the argmax masks, or under masks drawn anew at each step.

    Args:
        learner: whose network acts.
        t_env: env steps that it was trained for.
        seed: of the masks that are drawn.
    """
    generator = torch.Generator(learner.config.device).manual_seed(seed)
    if learner.config.acting_masks == "argmax":
        return partial(step, learner.argmax_weights())
    return lambda inputs, hidden: step(acting_weights(learner, t_env, generator), inputs, hidden)


def trained_policy(learner: K24QLearner, t_env: int, seed: int, counter: int = 0) -> Policy:
    """What a run with this seed is evaluated with after `t_env` env steps, for its `counter`-th batch of episodes."""
    act = acting_policy(learner, t_env, derive_seed(seed, Stream.TEST_MASKS, counter))
    return Policy(act, learner.agent.initial_hidden)


def play(team: Team, env: VecEnv, policy: Policy, seed: int, counter: int = 0, epsilon: float = 0.0) -> EpisodeBatch:
    """An episode of each environment: the `counter`-th batch (from 0) of a run's test episodes.

    Args:
        team: which unit uses which weights, and the run's configuration.
        env: with as many environments as the run tests with, these are the run's own test episodes.
        policy: what acts.
        seed: of the run whose test episodes these are.
        counter: which batch.
        epsilon: probability of a random action; 0 is greedy.
    """
    return collect(
        env,
        policy.act,
        initial_hidden=policy.initial_hidden,
        rows_of=team.rows,
        epsilon=epsilon,
        seed=derive_seed(seed, Stream.TEST_EPISODES, counter),
        generator=torch.Generator().manual_seed(0),
        agent_id=team.config.agent_id,
        with_state=False,
    )


def pattern_arrays(learner: K24QLearner, t_env: int) -> dict[str, np.ndarray]:
    """`<layer>/pattern_index` [M, out, G] (argmax) and `<layer>/pattern_probs` [M, out, G, 6] of every masked layer."""
    scheme = learner.scheme
    if not isinstance(scheme, PatternScheme):
        return {}
    layers, draw = scheme.layers, scheme.argmax_draw(t_env)
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
def behaviour(learner: K24QLearner, t_env: int, batch: EpisodeBatch, n_episodes: int) -> dict[str, np.ndarray]:
    """Q-values of every policy on everybody's observation histories, with the masks of acting.

    With acting_masks="drawn" these are one draw for all time steps.

    Returns:
        `q_values` [M, S, A] and `avail_actions` [S, A], M policies (of agents or unit types), S running over
        living units observed, time and episodes.
    """
    n_agents, n_policies = learner.spec.n_agents, learner.n_masks
    obs = batch.obs[:n_episodes, :-1].permute(1, 0, 2, 3).flatten(1, 2)  # [T, episodes * N, O]
    obs = obs.unsqueeze(2).expand(-1, -1, n_policies, -1)  # every policy sees every history
    inputs = agent_inputs(obs, learner.config.agent_id).permute(2, 3, 0, 1).contiguous()
    hidden = learner.agent.initial_hidden(n_policies, inputs.shape[3])
    generator = torch.Generator(learner.config.device).manual_seed(derive_seed(learner.config.seed, Stream.TEST_MASKS))
    q_values = unroll(acting_weights(learner, t_env, generator), inputs, hidden).q_values.permute(0, 2, 3, 1)
    filled = batch.filled[:n_episodes].T.repeat_interleave(n_agents, dim=1)  # [T, episodes * N]
    played = filled & batch.alive[:n_episodes, :-1].transpose(0, 1).flatten(1)
    avail = batch.avail_actions[:n_episodes, :-1].permute(1, 0, 2, 3).flatten(1, 2)
    return {"q_values": q_values[:, played].cpu().numpy(), "avail_actions": avail[played].cpu().numpy()}
