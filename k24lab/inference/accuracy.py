"""What freezing costs: how far a frozen team is from the network that was trained, and what it returns."""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from k24lab.envs.registry import make_env
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import DTYPES, FrozenTeam, freeze, load_learner, load_team, save_team
from k24lab.marl.batching import Rows, rows_for
from k24lab.marl.policy import Policy, play, trained_policy
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs
from k24lab.marl.targets import greedy_actions
from k24lab.ops import library as kernels


def accuracy_table(folder: Path, n_episodes: int = 256) -> pd.DataFrame:
    """The network of a run as it is evaluated, and teams frozen from it in every precision, on the same episodes.

    A row per implementation (column `form`): `kilobytes` of its file (1000 bytes); `max_error` and `mean_error` of the
    Q-values and `agreement`, the share of greedy actions that are the trained network's, both on the histories of that
    network's own episodes (`n_observations`: living agents and time steps; where two actions are worth the same, the
    last digit chooses); `return_mean` of its own `n_episodes` in the same environments; and `difference`,
    `difference_low` and `difference_high`, how much more it returns than the trained network, episode by episode
    (Student's t, 95 %).
    """
    learner, config, t_env = load_learner(folder)
    spec = learner.spec
    team = freeze(learner.agent, config, spec.obs_dim, spec.n_agents, t_env)
    env = make_env(config.task, n_episodes, config.n_workers)
    trained = trained_policy(learner, t_env, config.seed)
    batch = play(learner, env, trained, config.seed)
    rows = rows_for(config, batch.unit_type, learner.n_masks)
    reference = _q_values(trained, rows, batch, config.agent_id)
    table = [{"form": "trained network"} | _compared(reference, reference, batch) | _returned(batch, batch)]
    for name, (policy, size) in _frozen(team).items():
        q_values = _q_values(policy, rows, batch, config.agent_id)
        row = {"form": name, "kilobytes": size / 1000} | _compared(q_values, reference, batch)
        table.append(row | _returned(play(learner, env, policy, config.seed), batch))
    env.close()
    return pd.DataFrame(table).assign(run=folder.name)


def _frozen(team: FrozenTeam) -> dict[str, tuple[Policy, int]]:
    """The team by each backend in float32 and in every other precision, with the bytes of its file."""
    policies = {}
    backends = ["torch", "kernel", "columns"] if kernels.library() is not None else ["torch"]
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / dtype
            save_team(team, path, dtype)
            read, size = load_team(path), path.stat().st_size
            for backend in backends if dtype == "float32" else backends[:1]:
                actor = Actor(read, backend)
                name = f"{dtype}, {backend}" if dtype == "float32" else f"{dtype} weights"
                policies[name] = Policy(actor.act, actor.initial_hidden), size
    return policies


@torch.inference_mode()
def _q_values(policy: Policy, rows: Rows, batch: EpisodeBatch, agent_id: bool) -> Float[Tensor, "B T N A"]:
    """Of a policy on the histories of these episodes, whoever played them."""
    inputs = rows.split(agent_inputs(batch.obs[:, :-1], agent_id))
    hidden, steps = policy.initial_hidden(len(inputs), inputs.shape[3]), []
    for t in range(inputs.shape[2]):
        q_values, hidden = policy.act(inputs[:, :, t].contiguous(), hidden)
        steps.append(q_values)
    return rows.merge(torch.stack(steps, dim=2)).permute(2, 1, 0, 3)


def _compared(q_values: Tensor, reference: Tensor, batch: EpisodeBatch) -> dict[str, Any]:
    """Where agents were alive and could choose."""
    seen = batch.filled.unsqueeze(2) & batch.alive[:, :-1]
    avail = batch.avail_actions[:, :-1]
    same = greedy_actions(q_values, avail) == greedy_actions(reference, avail)
    error = (q_values - reference).abs()[seen.unsqueeze(-1) & avail]
    return {
        "max_error": error.max().item(),
        "mean_error": error.mean().item(),
        "agreement": same[seen].double().mean().item(),
        "n_observations": int(seen.sum()),
    }


def _returned(batch: EpisodeBatch, trained: EpisodeBatch) -> dict[str, float]:
    gains = pd.Series((batch.returns.double() - trained.returns.double()).numpy())
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.sem()
    means = {"return_mean": batch.returns.double().mean().item(), "difference": gains.mean()}
    return means | {"difference_low": gains.mean() - half, "difference_high": gains.mean() + half}
