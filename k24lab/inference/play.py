"""Playing episodes with the network of a run, or with one that stands in for it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from k24lab.envs.base import VecEnv
from k24lab.marl.learner import K24QLearner
from k24lab.marl.policy import acting_policy
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import collect
from k24lab.marl.seeding import Stream, derive_seed


class Policy(NamedTuple):
    """What `collect` acts with."""

    act: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    initial_hidden: Callable[[int, int], Tensor]


def trained_policy(learner: K24QLearner, t_env: int, seed: int, counter: int = 0) -> Policy:
    """What a run with this seed is evaluated with after `t_env` env steps, for the `counter`-th batch of episodes."""
    act = acting_policy(learner, t_env, derive_seed(seed, Stream.TEST_MASKS, counter))
    return Policy(act, learner.agent.initial_hidden)


def play(learner: K24QLearner, env: VecEnv, policy: Policy, seed: int, counter: int = 0) -> EpisodeBatch:
    """A greedy episode of each environment: the `counter`-th batch of a run's test episodes.

    Args:
        learner: which unit uses which weights, and the run's configuration.
        env: the worlds; with as many as the run tests with they are the run's own test episodes.
        policy: what acts.
        seed: of the run whose test episodes these are.
        counter: from 0.
    """
    return collect(
        env,
        policy.act,
        initial_hidden=policy.initial_hidden,
        rows_of=learner.rows,
        epsilon=0.0,
        seed=derive_seed(seed, Stream.TEST_EPISODES, counter),
        generator=torch.Generator(),
        agent_id=learner.config.agent_id,
        with_state=False,
    )
