"""Episodes of unequal length: what is left out once an episode is over changes nothing."""

import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st

from k24lab.envs.base import EnvSpec
from k24lab.marl import batching
from k24lab.marl.batching import ROW_MULTIPLE, AgentRows, SharedRows, TypeRows, blocks
from k24lab.marl.learner import build_learner

N_AGENTS, N_TYPES, LIMIT = 4, 3, 40


@pytest.fixture
def spec() -> EnvSpec:
    """Four units of three types, long episodes."""
    return EnvSpec(
        n_envs=4,
        n_agents=N_AGENTS,
        obs_dims=(6,) * N_AGENTS,
        n_actions=(4,) * N_AGENTS,
        state_dim=5,
        episode_limit=LIMIT,
        n_unit_types=N_TYPES,
    )


def filled_until(lengths: list[int]) -> torch.Tensor:
    """[B, T] of episodes of these lengths."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("learner", ["q", "nq"])
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fups-id"},
        {"method": "nops"},
        {"method": "multih"},
        {"method": "magnitude24"},
        {"method": "kaleidoscope"},
        {"method": "k24"},
        {"method": "k24", "mask_per": "type", "mixer": "qmix"},
        {"method": "k24", "reset_trigger": "adaptive"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_an_update_in_blocks_is_the_update(changes, learner, spec, tiny_config, random_episodes, monkeypatch):
    batch = random_episodes(n=40, spec=spec)
    order = batch.filled.sum(dim=1).argsort(descending=True)
    batch = type(batch)(**{f.name: getattr(batch, f.name)[order] for f in dataclasses.fields(batch)})
    settings = {"batch_size": 8, "buffer_size": 64, "learner": learner}
    learners = [build_learner(tiny_config(**settings | changes), spec) for _ in range(2)]
    learners[1].load_state_dict(learners[0].state_dict())
    assert len(blocks(batch.filled, learners[0].rows(batch.unit_type))) > 2
    cut = learners[0].update(batch, t_env=100, log=True)
    monkeypatch.setattr(batching, "CUT_AT", -1)
    whole = learners[1].update(batch, t_env=100, log=True)
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-6)
    for a, b in zip(learners[0].agent.parameters(), learners[1].agent.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for a, b in zip(learners[0].agent.buffers(), learners[1].agent.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from(["shared", "agents", "types"]), st.data())
def test_blocks_hold_every_step_of_every_episode(lengths, kind, data):
    n = len(lengths)
    types = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=2 * n, max_size=2 * n))).view(n, 2)
    rows = {"shared": SharedRows(2), "agents": AgentRows(), "types": TypeRows(types, 3)}[kind]
    numbers = torch.arange(1.0, 2 * n + 1).view(n, 1, 2, 1)  # every unit's own, in split [K, 1, 1, R]
    split = rows.split(numbers)[:, 0, 0]
    cut = blocks(filled_until(lengths), rows)
    assert [b.steps.start for b in cut] == [0, *(b.steps.stop for b in cut[:-1])]
    assert cut[-1].steps.stop == max(lengths) + 1
    for block in cut:
        assert block.n_rows == split.shape[1] or block.n_rows % ROW_MULTIPLE == 0
        running = [b for b, end in enumerate(lengths) if end >= block.steps.start]
        assert set(numbers[running].flatten().tolist()) <= set(split[:, : block.n_rows].flatten().tolist())


def test_full_episodes_are_one_block():
    assert blocks(filled_until([50] * 6), SharedRows(3)) == [(slice(0, 51), 18)]


def test_blocks_shrink_with_the_episodes_that_run():
    cut = blocks(filled_until([40] + [20] * 15 + [10] * 16), AgentRows())
    assert [(b.steps.start, b.n_rows) for b in cut] == [(0, 32), (16, 16), (24, 8)]
