"""Playing episodes: E environments at once, acting with fixed weights."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.base import Step, VecEnv
from k24lab.errors import RunError
from k24lab.marl.batching import Rows
from k24lab.marl.replay import EpisodeBatch, empty_batch
from k24lab.marl.targets import greedy_actions


def agent_inputs(obs: Float[Tensor, "*n N O"], agent_id: bool) -> Float[Tensor, "*n N I"]:
    """What the network reads: the observation, with `agent_id` followed by a one-hot agent index."""
    if not agent_id:
        return obs
    n_agents = obs.shape[-2]
    ids = torch.eye(n_agents, dtype=obs.dtype, device=obs.device)
    return torch.cat([obs, ids.expand(*obs.shape[:-1], n_agents)], dim=-1)


def epsilon_greedy(
    q_values: Float[Tensor, "E N A"], avail: Bool[Tensor, "E N A"], epsilon: float, generator: torch.Generator
) -> Int[Tensor, "E N"]:
    """The greedy available action, or with probability epsilon any available one."""
    greedy = greedy_actions(q_values, avail)
    if epsilon <= 0:
        return greedy
    # The largest of uniform numbers over the available actions is a uniform choice among them.
    noise = torch.rand(q_values.shape, generator=generator, device=q_values.device)
    explore = torch.rand(greedy.shape, generator=generator, device=q_values.device) < epsilon
    return torch.where(explore, greedy_actions(noise, avail), greedy)


@torch.inference_mode()
def collect(
    env: VecEnv,
    act: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    initial_hidden: Callable[[int, int], Tensor],
    rows_of: Callable[[Int[Tensor, "E N"]], Rows],
    epsilon: float,
    seed: int,
    generator: torch.Generator,
    agent_id: bool,
    with_state: bool,
) -> EpisodeBatch:
    """Play one episode in each of the E environments.

    Args:
        act: one time step of a fixed policy: inputs [K, I, R] and hidden state to Q-values [K, A, R] and the next one.
        initial_hidden: the first hidden state of R rows for each of K networks.
        rows_of: which unit uses which weights, from the unit types at reset.
        seed: of the episodes; the same seed gives the same episodes for the same actions.
        generator: of the exploration.
    """
    batch, now = _begin(env, seed, with_state, generator.device)
    running = torch.ones(env.spec.n_envs, dtype=torch.bool, device=generator.device)
    rows = rows_of(batch.unit_type)
    hidden: Tensor | None = None
    for t in range(env.spec.episode_limit):
        _store(batch, t, now, with_state)
        inputs = rows.split(agent_inputs(batch.obs[:, t : t + 1], agent_id)).squeeze(2)  # [K, I, R]
        hidden = initial_hidden(len(inputs), inputs.shape[2]) if hidden is None else hidden
        q_values, hidden = act(inputs, hidden)
        by_agent = rows.merge(q_values.unsqueeze(2)).squeeze(1)  # [N, E, A]
        actions = epsilon_greedy(by_agent.transpose(0, 1), batch.avail_actions[:, t], epsilon, generator)
        now = env.step(actions.to(now.obs.device))
        running = _store_transition(batch, t, actions, now, running)
        if not running.any():
            break
    _store(batch, t + 1, now, with_state)
    if now.won is not None:
        batch.won.copy_(now.won)
    return _finite(batch)


def _finite(batch: EpisodeBatch) -> EpisodeBatch:
    """The batch, if all its numbers are finite: others would spoil the network many updates later."""
    for name in ("obs", "state", "reward"):
        values = getattr(batch, name)
        if not values.isfinite().all():
            env, t, *rest = (~values.isfinite()).nonzero()[0].tolist()
            agent = f" of agent {rest[0]}" if name == "obs" else ""
            value = values[(env, t, *rest)].item()
            raise RunError(
                f"environment {env}: {name}{agent} is {value} at step {t}; environments must give finite numbers"
            )
    return batch


def _begin(env: VecEnv, seed: int, with_state: bool, device: torch.device) -> tuple[EpisodeBatch, Step]:
    """An empty batch, and what is seen first."""
    batch, now = empty_batch(env.spec, env.spec.n_envs, with_state, device=str(device)), env.reset(seed)
    if now.unit_type is not None:
        batch.unit_type.copy_(now.unit_type)
    return batch, now


def _store_transition(
    batch: EpisodeBatch, t: int, actions: Int[Tensor, "E N"], now: Step, running: Bool[Tensor, " E"]
) -> Bool[Tensor, " E"]:
    """Write the t-th action and what came of it; returns which environments still run."""
    device = running.device
    terminated, truncated = now.terminated.to(device), now.truncated.to(device)
    batch.actions[:, t] = actions
    batch.reward[:, t] = torch.where(running, now.reward.to(device), 0.0)
    batch.terminated[:, t] = terminated & running
    batch.filled[:, t] = running
    return running & ~(terminated | truncated)


def _store(batch: EpisodeBatch, t: int, now: Step, with_state: bool) -> None:
    """Write what is seen before the t-th action. Rows of ended environments repeat their last observation."""
    batch.obs[:, t] = now.obs
    batch.avail_actions[:, t] = now.avail_actions
    batch.alive[:, t] = True if now.alive is None else now.alive
    if with_state:
        batch.state[:, t] = now.state
