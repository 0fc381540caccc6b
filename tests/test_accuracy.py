"""What freezing costs, measured on a trained run."""

import pytest
import torch

from k24lab.errors import ConfigError
from k24lab.inference import accuracy
from k24lab.lab.train import train

TASKS = [
    {"method": "k24"},
    {"method": "k24", "mask_per": "type", "task": "rolenav:n_agents=4,n_types=3"},
    {"method": "magnitude24", "agent_id": True},
]


@pytest.mark.parametrize("changes", TASKS)
def test_frozen_teams_act_as_the_network_they_come_from(tiny_config, changes):
    folder = train(tiny_config(t_max=400, **changes), "accuracy", progress=False)
    table = accuracy.accuracy_table(folder, n_episodes=16).set_index("form")
    exact = [name for name in table.index if name.startswith("float32")]
    assert exact and set(table.index) == {"trained network", *exact} | {
        f"{dtype} weights" for dtype in ("float16", "bfloat16", "int8")
    }
    trained = table.loc["trained network"]
    assert trained["max_error"] == 0 and trained["agreement"] == 1
    assert (table["n_observations"] == table["n_observations"].iloc[0]).all() and trained["n_observations"] > 300
    for name in exact:
        row = table.loc[name]
        assert row["max_error"] < 1e-5 and row["agreement"] == 1
        assert row["return_mean"] == pytest.approx(trained["return_mean"], abs=1e-9)
    rounded = table.loc[["float16 weights", "bfloat16 weights", "int8 weights"]]
    assert (rounded["max_error"] > 1e-6).all() and (rounded["max_error"] < 0.1).all()
    assert rounded.loc["float16 weights", "mean_error"] < rounded.loc["bfloat16 weights", "mean_error"]
    assert rounded.loc["int8 weights", "kilobytes"] < rounded.loc["float16 weights", "kilobytes"]
    assert (table["difference"] + trained["return_mean"]).to_list() == pytest.approx(table["return_mean"].to_list())
    assert (table["difference_low"] <= table["difference"]).all()
    assert (table["difference"] <= table["difference_high"]).all()


def test_dead_agents_and_unavailable_actions_do_not_count(tiny_config):
    from k24lab.bench.train import random_batch
    from k24lab.envs.base import EnvSpec

    spec = EnvSpec(n_envs=2, n_agents=2, obs_dims=(4, 4), n_actions=(3, 3), state_dim=0, episode_limit=5)
    batch = random_batch(spec, 2)
    batch.filled[1, 2:] = False
    batch.alive[0, :, 1] = False
    batch.avail_actions[..., 2] = False
    reference = torch.zeros(2, 5, 2, 3)
    reference[..., 0] = 1.0
    other = reference.clone()
    other[..., 2] = 9.0  # not available
    other[1, 2:] = torch.tensor([0.0, 5.0, 0.0])  # over
    other[0, :, 1] = torch.tensor([0.0, 5.0, 0.0])  # dead
    assert accuracy._compared(other, reference, batch) == {
        "max_error": 0.0,
        "mean_error": 0.0,
        "agreement": 1.0,
        "n_observations": 5 + 2 * 2,
    }
    other[0, 0, 0] = torch.tensor([1.0, 1.5, 0.0])
    told = accuracy._compared(other, reference, batch)
    assert told["agreement"] == pytest.approx(8 / 9) and told["max_error"] == 1.5


def test_a_run_that_cannot_be_frozen_is_refused(tiny_config):
    folder = train(tiny_config(method="fups", t_max=200), "accuracy", progress=False)
    with pytest.raises(ConfigError, match="only 2:4 networks can be frozen"):
        accuracy.accuracy_table(folder)
