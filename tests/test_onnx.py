"""Exported graphs against the team, in onnxruntime."""

import numpy as np
import pytest
import torch
from gains import WITH_GAINS, spread_gains

from k24lab.errors import ConfigError
from k24lab.inference import freeze as teams, onnx as export
from k24lab.inference.actor import Actor
from k24lab.marl.agent import build_agent

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture
def make_team(tiny_config):
    def make(**changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": 16} | changes)
        return teams.freeze(spread_gains(build_agent(config, 10, 5, 3)), config, 10, 3, t_env=0)

    return make


def run(path, obs, hidden):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x).float() for x in session.run(None, {"obs": obs.numpy(), "hidden": hidden.numpy()})]


@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}, *WITH_GAINS])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_graph_is_the_team(make_team, tmp_path, changes, dtype, tolerance):
    team = make_team(**changes)
    kind = getattr(torch, dtype)
    export.export_onnx(team, tmp_path / "team.onnx", dtype)
    for agent in range(team.n_masks):
        export.export_onnx(team, tmp_path / f"{agent}.onnx", dtype, agent)
    for batch in (1, 7):
        actor, hidden = Actor(team, "torch"), torch.zeros(team.n_masks, batch, 16)
        for _ in range(3):
            obs = torch.randn(team.n_masks, batch, 10)
            expected = actor.q_values(obs)
            q_values, after = run(tmp_path / "team.onnx", obs.to(kind), hidden.to(kind))
            torch.testing.assert_close(q_values, expected, rtol=tolerance, atol=tolerance)
            for agent in range(team.n_masks):
                one, _ = run(tmp_path / f"{agent}.onnx", obs[agent].to(kind), hidden[agent].to(kind))
                torch.testing.assert_close(one, expected[agent], rtol=tolerance, atol=tolerance)
            hidden = after


def test_matrices_in_the_file_are_24_and_the_graph_has_one_gemm_each(make_team, tmp_path):
    team = make_team(mask_rnn=False)
    export.export_onnx(team, str(tmp_path / "team.onnx"))
    graph = onnx.load(tmp_path / "team.onnx").graph
    assert sum(node.op_type == "Gemm" for node in graph.node) == 6 * 3
    assert {node.op_type for node in graph.node}.isdisjoint({"MatMul", "GRU", "Cast", "Transpose"})
    weights = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer if c.name.endswith(".weight")}
    assert len(weights) == 4 * 3 + 2
    for name, weight in weights.items():
        groups = np.pad(weight, ((0, 0), (0, -weight.shape[1] % 4))).reshape(len(weight), -1, 4)
        assert ((groups != 0).sum(-1) <= 2).all() == ("rnn" not in name), name


def test_what_cannot_be_exported(make_team, tmp_path):
    team = make_team()
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        export.export_onnx(team, tmp_path / "x.onnx", "int8")
    with pytest.raises(ConfigError, match="agent = 3 must be 0 to 2"):
        export.export_onnx(team, tmp_path / "x.onnx", agent=3)
    team.layers["fc2"].bias[0] = 1e6
    with pytest.raises(ConfigError, match=r"fc2.* has numbers that float16 cannot hold: the largest is 1e\+06"):
        export.export_onnx(team, tmp_path / "x.onnx", "float16")
    assert not (tmp_path / "x.onnx").exists()
