import dataclasses

import pytest

from k24lab.bench import train as bench
from k24lab.bench.train import (
    BASELINE,
    VARIANTS,
    bench_train,
    measure_updates,
    part_shares,
    peak_bytes,
    random_batch,
)
from k24lab.envs.base import EnvSpec
from k24lab.marl.learner import PARTS, K24QLearner

SHAPE = (2, 5, 3, 8, 4)  # agents, observation, actions, hidden size, episode length
SPEC = EnvSpec(n_envs=2, n_agents=2, obs_dims=(5, 5), n_actions=(3, 3), state_dim=10, episode_limit=4)


@pytest.mark.parametrize("method", ["k24", "fups"])
def test_shares_of_the_parts_sum_to_one(method, tiny_config):
    shares = part_shares(K24QLearner(tiny_config(method=method), SPEC), random_batch(SPEC, 4))
    assert tuple(shares) == PARTS
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 < share < 1 for share in shares.values())


def test_random_batch_is_full_length_episodes_of_the_task():
    batch = random_batch(SPEC, 6)
    assert batch.n_steps == 6 * 4 and batch.obs.shape == (6, 5, 2, 5)
    assert batch.actions.min() >= 0 and batch.actions.max() <= 2


def test_update_table_has_a_row_a_variant_and_a_column_a_part():
    table = measure_updates(SHAPE, rounds=1)
    assert list(table.columns) == ["variant", "ms", "ratio", "peak_mb", *PARTS]
    assert list(table["variant"]) == list(VARIANTS)
    assert (table["ms"] > 0).all() and (table["ratio"] > 0).all()
    assert table.set_index("variant")["ratio"][BASELINE] == 1
    assert table[list(PARTS)].sum(axis=1).to_numpy() == pytest.approx(1)


def test_peak_memory_is_that_of_the_largest_tensors(tiny_config):
    batch, longer = random_batch(SPEC, 4), random_batch(dataclasses.replace(SPEC, episode_limit=40), 4)
    learner = K24QLearner(tiny_config(method="k24"), SPEC)
    peaks = [peak_bytes(learner, b) for b in (batch, longer)]
    activations = 4 * 2 * 41 * learner.config.hidden_dim * 4  # episodes, agents, steps, numbers, bytes: one layer's
    assert activations < peaks[1] < 100 * activations and peaks[0] < peaks[1]


def test_benchmark_prints_every_case_and_leaves_a_table(monkeypatch, capsys):
    monkeypatch.setattr(bench, "TEAM_SIZES", (1, 2))
    monkeypatch.setattr(bench, "SHAPES", {"a small shape": SHAPE})
    path = bench_train(rounds=1)
    assert path.name == "bench_train.csv" and path.is_file()
    out = capsys.readouterr().out
    assert "a small shape" in out and all(name in out for name in VARIANTS)
