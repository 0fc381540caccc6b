"""The benchmark of inference: all implementations compute the same, and what it prints and draws."""

import pandas as pd
import pytest
import torch
from test_kernels import build, needs_kernels  # noqa: F401

from k24lab.analysis import speedup_plots
from k24lab.analysis.speedup_plots import fastest_sparse, over_shared
from k24lab.bench import inference as bench, timing
from k24lab.errors import ConfigError
from k24lab.inference.actor import batched, team_step
from k24lab.inference.freeze import freeze
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.ops import library as kernels


@pytest.fixture
def small(monkeypatch):
    """A few cases, each timed once."""
    monkeypatch.setattr(speedup_plots, "SHOWN_BATCHES", (1,))
    monkeypatch.setattr(timing, "SHORTEST", 1e-6)
    cases = {"WIDTHS": (16, 32), "BATCHES": (1, 2), "TEAMS": (1, 2), "TEAM_BATCHES": (1, 2)}
    cases |= {"GAIN_TEAMS": (2,), "GAIN_BATCHES": (1, 3)}
    for name, value in (cases | {"HIDDEN": (8, 16)}).items():
        monkeypatch.setattr(bench, name, value)


def test_the_ways_to_compute_a_step_in_torch_agree():
    config = build_config({"method": "k24", "hidden_dim": 12})
    matrices = freeze(build_agent(config, 10, 5, 3), config, 10, 3, t_env=0).folded()
    x, hidden = torch.randn(3, 4, 10), torch.randn(3, 4, 12)
    together, _ = team_step(batched(matrices), x, hidden)
    agents = [{name: (weight[k], bias[0]) for name, (weight, bias) in matrices.items()} for k in range(3)]
    torch.testing.assert_close(torch.stack(bench.agent_by_agent(agents, x, hidden)), together, rtol=1e-5, atol=1e-6)
    one = batched({name: (weight[:1], bias) for name, (weight, bias) in matrices.items()})
    shared, _ = team_step(one, x.view(1, 12, 10), hidden.view(1, 12, 12))
    torch.testing.assert_close(shared[0, :4], together[0], rtol=1e-5, atol=1e-6)


def test_published_points_are_whole_and_none_is_a_win_for_agents():
    points = bench.published_points()
    assert points["speedup"].is_monotonic_increasing and len(points) == 25
    assert points["source"].str.len().gt(0).all() and set(points["timing"]) <= {"kernel", "eager", "compiled"}
    assert points[["out_features", "in_features"]].dropna().min(axis=None) > 256


def test_random_weight_is_24():
    weight = bench.random_24_weight(32, 64, torch.Generator().manual_seed(0))
    assert weight.shape == (32, 64)
    assert (weight.reshape(-1, 4).ne(0).sum(dim=1) == 2).all()


@needs_kernels
def test_benchmark_prints_and_stores_every_case(build, small, capsys):  # noqa: F811
    path = bench.bench_inference(2)
    table = pd.read_csv(path)
    layers, teams = table[table["level"] == "layer"], table[table["level"] == "team"]
    assert len(layers) == 2 * 2 * 5 and len(teams) == 2 * 2 * 2 * 6
    gains = table[table["level"] == "gains"]
    assert len(gains) == 2 * 4 and set(gains["width"]) == {16} and gains["speedup"].gt(0).all()
    teams = teams[teams["width"] == 8]
    assert table[["device", "kernels", "torch", "date"]].notna().all(axis=None)
    out = capsys.readouterr().out
    assert "one thread" in out and "One step of a team" in out
    stored, on_gpu = bench.measurements()
    assert on_gpu is None or len(on_gpu)
    pd.testing.assert_frame_equal(stored, table)
    assert f"bench_inference.csv: {path}" in capsys.readouterr().out
    shared = over_shared(teams)
    us = teams.set_index(["n_agents", "batch", "form"])["us"]
    fastest = min(us[2, 1, "2:4"], us[2, 1, "2:4, columns"])
    expected = us[2, 1, "torch, one shared network"] / fastest
    assert shared.set_index(["n_agents", "batch"])["ratio"][2, 1] == pytest.approx(expected)
    rows = fastest_sparse(teams).set_index(["n_agents", "batch"])
    assert len(rows) == 4 and rows["us"][2, 1] == fastest


def test_the_tables_have_the_columns_of_the_files_that_are_committed(small):
    committed = pd.read_csv(bench.SHIPPED / "figures" / f"{bench.NAME}.csv", nrows=1)
    row = bench._rows({"2:4": [1.0], "packed dense": [1.0], "a": [1.0]}, ["a"], {"level": "layer", "width": 1})[0]
    assert set(row) <= set(committed.columns)


def test_speedups_are_ratios_to_the_fastest_plain_implementation():
    times = {"2:4": [1.0, 1.0, 2.0], "packed dense": [2.0, 2.0, 2.0], "a": [3.0, 3.0, 3.0], "b": [9.0, 9.0, 9.0]}
    rows = {row["form"]: row for row in bench._rows(times, ["a", "b"], {"width": 1})}
    assert rows["2:4"]["speedup"] == 3.0 and rows["2:4"]["own"] == 2.0
    assert (rows["2:4"]["us_low"], rows["2:4"]["us"], rows["2:4"]["us_high"]) == (1.0, 1.0, 1.5)
    assert rows["b"]["speedup"] == pytest.approx(1 / 3) and "own" not in rows["b"]


def test_without_kernels_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(ConfigError, match="which are not built here"):
        bench.bench_inference(2)
