"""What freezing costs, measured on a trained run."""

import pytest
import torch
from test_kernels import build, needs_kernels  # noqa: F401

from k24lab.errors import ConfigError
from k24lab.inference import accuracy
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import freeze
from k24lab.lab.train import train
from k24lab.marl.agent import build_agent
from k24lab.ops import library as kernels

TASKS = [
    {"method": "k24"},
    {"method": "k24", "mask_per": "type", "task": "rolenav:n_agents=4,n_types=3"},
    {"method": "magnitude24", "agent_id": True},
]


@pytest.mark.parametrize("changes", TASKS)
def test_frozen_teams_act_as_the_network_they_come_from(tiny_config, changes):
    folder = train(tiny_config(t_max=400, **changes), "accuracy", progress=False)
    table = accuracy.accuracy_table(folder, n_episodes=16).set_index("form")
    exact = [form for form in table.index if form.startswith("float32")]
    assert exact and set(table.index) == {"trained network", *exact} | {
        f"{dtype} weights" for dtype in ("float16", "bfloat16", "int8")
    }
    trained = table.loc["trained network"]
    assert trained["max_error"] == 0 and trained["agreement"] == 1
    assert (table["n_observations"] == table["n_observations"].iloc[0]).all() and trained["n_observations"] > 300
    for form in exact:
        row = table.loc[form]
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


@pytest.fixture
def make_team(tiny_config):
    def make(n=3, **changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": 16} | changes)
        return freeze(build_agent(config, 10, 5, n), config, 10, n, t_env=0)

    return make


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_inputs_that_do_not_fit_are_refused(make_team, backend):
    actor = Actor(make_team(), backend)
    for inputs, said in (
        (torch.randn(3, 2, 11), r"inputs \(3, 2, 11\) in float32 on cpu, expected \[3, games, 10\] in float32"),
        (torch.randn(3, 2, 10).double(), "in float64 on cpu, expected"),
        (torch.randn(4, 2, 10), r"inputs \(4, 2, 10\)"),
        (torch.randn(1, 2, 10), r"inputs \(1, 2, 10\)"),
        (torch.randn(3, 2, 10, device="meta"), "on meta, expected"),
    ):
        with pytest.raises(ValueError, match=said):
            actor.q_values(inputs)
        with pytest.raises(ValueError, match=said):
            actor.act(inputs.mT, actor.initial_hidden(3, 2))
    actor.q_values(torch.randn(3, 2, 10))
    with pytest.raises(ValueError, match=r"inputs for 5 games, the last step had 2: reset\(\) first"):
        actor.q_values(torch.randn(3, 5, 10))
    actor.reset()
    assert actor.q_values(torch.randn(3, 5, 10)).shape == (3, 5, 5)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, {"method": "magnitude24"}, {"mask_rnn": False}])
@pytest.mark.parametrize("backend", ["auto", "kernel", "columns"])
@pytest.mark.parametrize("games", [1, 70, 3000])
def test_every_backend_is_the_team_for_any_number_of_games(build, make_team, backend, games, changes):  # noqa: F811
    team = make_team(**changes)
    actor, plain = Actor(team, backend), Actor(team, "torch")
    for _ in range(3):
        inputs = torch.randn(3, games, 10)
        torch.testing.assert_close(actor.q_values(inputs), plain.q_values(inputs), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_an_actor_takes_what_suits_the_number_of_games(build, make_team, monkeypatch):  # noqa: F811
    many = {"avx512": "kernel", "avx2": "columns", "portable": "columns"}
    team = make_team(hidden_dim=64)
    for build_name in many:
        monkeypatch.setattr(kernels, "describe", lambda name=build_name: name)
        actor, expected = Actor(team), many[build_name]
        assert [actor.form(8, games) for games in (1, 23, 60, 4000)] == ["kernel", "kernel", "kernel", expected]
        assert actor.form(1, 60) == "kernel" and actor.form(100, 24) == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert actor.form(8, 4000) == "torch"
    with pytest.raises(ConfigError, match="sparse = False needs backend = 'kernel', not 'auto'"):
        Actor(actor.team, sparse=False)


def test_a_frozen_team_does_not_follow_the_network_it_comes_from(tiny_config):
    config = tiny_config(method="k24")
    agent = build_agent(config, 10, 5, 3)
    team = freeze(agent, config, 10, 3, t_env=0)
    before = {name: layer.weight.clone() for name, layer in team.layers.items()}
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in team.layers.items())
