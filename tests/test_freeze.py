"""Frozen teams: the policy that was trained, whole in one file, and nothing else accepted as one."""

import dataclasses
import json

import pytest
import torch
from gains import WITH_GAINS, spread_gains
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from k24lab.core.masks import argmax_masks
from k24lab.errors import ConfigError, RunError
from k24lab.inference import freeze as teams
from k24lab.inference.actor import Actor
from k24lab.lab import tensorfile
from k24lab.lab.runs import CHECKPOINT, read_checkpoint, write_checkpoint
from k24lab.lab.train import train
from k24lab.marl.agent import build_agent, step
from k24lab.marl.learner import build_learner

METHODS = ["k24", "k24-alpha", "random24", "magnitude24"]


@pytest.fixture
def make_team(tiny_config):
    """A team and the agent it was frozen from."""

    def make(**changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": 12} | changes)
        agent = spread_gains(build_agent(config, 10, 5, 3))
        return teams.freeze(agent, config, 10, 3, t_env=7), agent

    return make


@pytest.mark.parametrize("changes", [*({"method": m} for m in METHODS), {"mask_rnn": False}, *WITH_GAINS])
def test_frozen_weights_are_those_that_act(make_team, changes):
    team, agent = make_team(**changes)
    masks = dict(zip(agent.masked_layers, argmax_masks(list(agent.masked_layers.values())), strict=True))
    for name, layer in agent.weights(masks).items():
        assert torch.equal(team.weights()[name].weight, layer.weight) and torch.equal(
            team.weights()[name].bias, layer.bias
        )
    assert team.n_masks == (1 if changes.get("method") == "magnitude24" else 3)
    assert (team.input_dim, team.n_actions) == (10, 5)


@pytest.mark.parametrize("dtype", teams.DTYPES)
@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}, *WITH_GAINS])
def test_a_file_holds_the_team_in_the_precision_asked_for(make_team, tmp_path, dtype, changes):
    team, _ = make_team(**changes)
    teams.save_team(team, tmp_path / "new" / "team.safetensors", dtype)
    read = teams.load_team(tmp_path / "new" / "team.safetensors")
    assert dataclasses.replace(read, layers={}) == dataclasses.replace(team, layers={}, dtype=dtype)
    for name, layer in team.layers.items():
        ours = read.layers[name]
        rounding = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 0.5 / 127}[dtype]
        most = layer.weight.abs().amax(dim=1, keepdim=True)
        assert ((ours.weight - layer.weight).abs() <= rounding * most * 1.001).all()
        assert torch.equal(ours.bias, layer.bias)
        assert (ours.own is None) == (layer.own is None)
        assert all(torch.equal(*pair) for pair in zip(ours.own or (), layer.own or (), strict=True))
        assert (ours.patterns is None) == (layer.patterns is None)
        if layer.patterns is not None:
            assert torch.equal(ours.patterns, layer.patterns)
    assert not list((tmp_path / "new").glob(".*"))


def test_damage_of_any_kind_is_found(make_team, tmp_path):
    path, copy = tmp_path / "team.safetensors", tmp_path / "copy.safetensors"
    teams.save_team(make_team()[0], path, "float16")
    whole, original = path.read_bytes(), teams.load_team(path)
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (200,), generator=generator).tolist():
        copy.write_bytes(whole[:place])
        with pytest.raises(RunError):
            teams.load_team(copy)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        copy.write_bytes(flipped)
        try:
            read = teams.load_team(copy)
        except RunError:
            continue
        # A bit that is not read: in the names of the header every one is.
        assert dataclasses.replace(read, layers={}) == dataclasses.replace(original, layers={})
        for ours, theirs in zip(read.layers.values(), original.layers.values(), strict=True):
            assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.patterns, theirs.patterns)


def test_files_that_are_no_teams_are_refused(make_team, tmp_path):
    path = tmp_path / "team.safetensors"
    with pytest.raises(RunError, match="does not exist"):
        teams.load_team(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="format None, expected 'k24lab-team-1'"):
        teams.load_team(path)
    save_file({"x": torch.zeros(1)}, path, {"format": "k24lab-team-2"})
    with pytest.raises(RunError, match="format 'k24lab-team-2'"):
        teams.load_team(path)
    teams.save_team(make_team()[0], path)
    tensors = load_file(path)
    tensors["fc1/weight"][0, 0] += 1.0
    save_file(tensors, path, {"format": teams.FORMAT, "checksum": "0"})
    with pytest.raises(RunError, match="is damaged"):
        teams.load_team(path)
    del tensors["fc2/bias"]
    about = {"format": teams.FORMAT, "sizes": "{}", "dtype": "float32", "config": json.dumps({})}
    save_file(tensors, path, about | {"checksum": tensorfile.checksum(about, tensors)})
    with pytest.raises(RunError, match=r"does not hold a team: ValueError: sizes \{\}"):
        teams.load_team(path)


def _forge(path, change, **about):
    """A file with other contents and a checksum that fits."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        kept = {key: value for key, value in file.metadata().items() if key != "checksum"}
    change(tensors)
    kept |= about
    save_file(tensors, path, kept | {"checksum": tensorfile.checksum(kept, tensors)})


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (lambda t: t.pop("fc2/bias"), {}, r"tensors \['fc2/bias'\] are missing"),
        (lambda t: t.update(extra=torch.zeros(1)), {}, r"tensors \['extra'\] are missing or belong to no team"),
        (lambda t: t.update({"fc1/scale": torch.zeros(12)}), {}, r"tensors \['fc1/scale'\]"),
        (
            lambda t: t.update({"fc2/weight": t["fc2/weight"].double()}),
            {},
            "fc2/weight of .* in torch.float64",
        ),
        (lambda t: t["fc2/bias"].fill_(torch.nan), {}, "fc2/bias of .* expected finite"),
        (lambda t: None, {"dtype": "foo"}, "dtype 'foo'"),
        (
            lambda t: None,
            {"sizes": json.dumps({"obs_dim": 9, "n_agents": 3, "n_masks": 3, "t_env": 7})},
            "fc1/weight of shape",
        ),
        (
            lambda t: None,
            {"sizes": json.dumps({"obs_dim": 10, "n_agents": 3, "n_masks": 5, "t_env": 7})},
            "fc1/patterns of",
        ),
        (lambda t: None, {"sizes": json.dumps({"obs_dim": 10, "n_agents": 3, "n_masks": "3", "t_env": 7})}, "sizes"),
        (lambda t: None, {"config": json.dumps({"method": "fups"})}, "method 'fups'"),
        (lambda t: None, {"config": json.dumps({"method": "k24", "hidden_dim": 64})}, "fc1/weight of shape"),
    ],
)
def test_forged_files_are_refused(make_team, tmp_path, change, about, said):
    path = tmp_path / "team.safetensors"
    teams.save_team(make_team()[0], path)
    _forge(path, change, **about)
    with pytest.raises(RunError, match=f"does not hold a team: .*{said}"):
        teams.load_team(path)


def test_weights_that_a_dtype_cannot_hold_are_not_written(make_team, tmp_path):
    team, _ = make_team()
    team.layers["fc2"].weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match="layer 'fc2' has numbers that float16 cannot hold"):
        teams.save_team(team, tmp_path / "team", "float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", ["fc1", "rnn_input", "fc2", "fc3"])
def test_layers_that_do_not_fit_together_are_refused(make_team, tmp_path, layer):
    path = tmp_path / "team.safetensors"
    team, _ = make_team()
    whole = team.layers[layer]
    assert whole.patterns is not None
    cut = teams.FrozenLayer(whole.weight[:-1], whole.bias[:-1], whole.patterns[:, :-1])
    teams.save_team(dataclasses.replace(team, layers={**team.layers, layer: cut}), path)
    rows = len(whole.weight)
    with pytest.raises(
        RunError, match=rf"does not hold a team: .*{layer}/weight of shape \({rows - 1}, \d+\) in .*, expected"
    ):
        teams.load_team(path)


@pytest.mark.parametrize("method", ["fups", "nops", "multih", "kaleidoscope"])
def test_what_is_not_24_is_not_frozen(make_team, method):
    with pytest.raises(ConfigError, match=f"method = '{method}'.*only 2:4 networks can be frozen"):
        make_team(method=method)


def test_a_run_acts_as_it_did_in_training(tiny_config):
    config = tiny_config(method="k24", t_max=800)
    folder = train(config, "frozen", progress=False)
    team = teams.freeze_run(folder)
    assert team.t_env >= 800 and team.n_agents == 3 and team.config == config
    learner = build_learner(config, _spec(config))
    learner.load_state_dict(read_checkpoint(folder / CHECKPOINT, config.hash())["learner"])
    weights, hidden = learner.argmax_weights(), learner.agent.initial_hidden(3, 2500)
    actor = Actor(team)
    for _ in range(4):  # 30,000 observations
        inputs = torch.randn(3, 2500, team.input_dim)
        expected, hidden = step(weights, inputs.mT.contiguous(), hidden)
        q_values = actor.q_values(inputs)
        torch.testing.assert_close(q_values, expected.detach().mT, rtol=1e-5, atol=1e-5)
        assert torch.equal(q_values.argmax(dim=-1), expected.mT.argmax(dim=-1))


def _spec(config):
    from k24lab.envs.registry import make_env

    return make_env(config.task, 1).spec


def test_a_run_of_a_gpu_is_frozen_on_a_machine_without_one(tiny_config, tmp_path):
    here = tiny_config(t_max=400)
    run = train(here, "here", progress=False)
    state = read_checkpoint(run / CHECKPOINT, here.hash())
    state["learner"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # what a generator of CUDA has
    config = dataclasses.replace(here, device="cuda")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    with (tmp_path / CHECKPOINT).open("wb") as file:
        write_checkpoint(file, state, config.hash())
    layers, there = teams.freeze_run(run).layers, teams.freeze_run(tmp_path).layers
    assert all(torch.equal(layers[name].masked(), layer.masked()) for name, layer in there.items())


def test_runs_that_cannot_be_frozen(tiny_config, make_team, tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        teams.freeze_run(tmp_path / "none")
    from k24lab.lab.runs import RunFolder, run_folder

    config = tiny_config()
    folder = RunFolder(run_folder(config, "new"), config)
    with pytest.raises(RunError, match="has no checkpoint: nothing is trained yet"):
        teams.freeze_run(folder.path)
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        teams.save_team(make_team()[0], tmp_path / "x", "float8")


def test_a_frozen_team_does_not_follow_the_network_it_comes_from(tiny_config):
    config = tiny_config(method="k24")
    agent = spread_gains(build_agent(config, 10, 5, 3))
    team = teams.freeze(agent, config, 10, 3, t_env=0)
    before = {name: layer.weight.clone() for name, layer in team.layers.items()}
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in team.layers.items())
