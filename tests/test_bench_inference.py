"""The benchmark of inference: every form computes the same, and what it prints and draws."""

import pandas as pd
import pytest
import torch
from test_kernels import build, needs_kernels  # noqa: F401

from k24lab.analysis import inference_plots, style
from k24lab.analysis.inference_plots import fastest_sparse, gpu_figure, over_shared
from k24lab.bench import cpu as bench_cpu, inference as bench_inference
from k24lab.errors import ConfigError
from k24lab.inference.freeze import freeze
from k24lab.inference.team_step import batched, team_step
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.ops import library as kernels


@pytest.fixture
def small(monkeypatch):
    """A few cases, each timed once."""
    monkeypatch.setattr(inference_plots, "SHOWN_BATCHES", (1,))
    cases = {"WIDTHS": (16, 24), "BATCHES": (1, 2), "HIDDEN": (8,), "TEAMS": (1, 2), "TEAM_BATCHES": (1, 2)}
    for name, value in (cases | {"ROLLOUT_TEAMS": (2,), "ROLLOUT_ENVS": (1,), "LEAST_SECONDS": 1e-6}).items():
        monkeypatch.setattr(bench_cpu, name, value)


def test_forms_of_torch_compute_the_same_step():
    config = build_config({"method": "k24", "hidden_dim": 12})
    team = freeze(build_agent(config, 10, 5, 3), config, 10, 3, t_env=0)
    x, hidden = torch.randn(3, 4, 10), torch.randn(3, 4, 12)
    matrices = {name: (layer.folded(), layer.bias) for name, layer in team.layers.items()}
    together, _ = team_step(batched(matrices), x, hidden)
    torch.testing.assert_close(torch.stack(bench_cpu._by_agent(matrices)(x, hidden)), together, rtol=1e-5, atol=1e-6)
    one = batched({name: (weight[:1], bias) for name, (weight, bias) in matrices.items()})
    shared, _ = team_step(one, x.view(1, 12, 10), hidden.view(1, 12, 12))
    torch.testing.assert_close(shared[0, :4], together[0], rtol=1e-5, atol=1e-6)


@needs_kernels
def test_rollouts_of_both_forms_play_the_same_games(build):  # noqa: F811
    rollouts = bench_cpu._Rollouts(2, 4)
    plain, kernel = rollouts.as_training(), rollouts.acting_kernel()
    assert torch.equal(plain.actions, kernel.actions) and plain.returns.unique().numel() > 1


@needs_kernels
def test_benchmark_prints_and_draws_every_case(build, small, capsys):  # noqa: F811
    paths = bench_inference.bench_inference(2)
    assert {p.suffix for p in paths} >= {".pdf", ".png", ".csv"} and all(p.is_file() for p in paths)
    table = pd.read_csv(next(p for p in paths if p.suffix == ".csv"))
    layers, teams = table[table["level"] == "layer"], table[table["level"] == "team"]
    assert len(layers) == 2 * 2 * (5 + 1) and len(teams) == 2 * 2 * 6
    assert set(table["kind"]) == {"measured", "predicted"}
    assert (layers.loc[layers["kind"] == "predicted", "form"] == "roofline").all()
    assert table[["device", "torch", "date", "peak_gflops", "gb_per_s"]].notna().all(axis=None)
    out = capsys.readouterr().out
    assert "GFLOP/s" in out and "GPU: " in out and "A rollout of RoleNav" in out
    shared = over_shared(teams)
    us = teams.set_index(["n_agents", "batch", "form"])["us"]
    fastest = min(us[2, 1, "2:4"], us[2, 1, "2:4, columns"])
    expected = us[2, 1, "torch, one shared network"] / fastest
    assert shared.set_index(["n_agents", "batch"])["ratio"][2, 1] == pytest.approx(expected)
    rows = fastest_sparse(teams).set_index(["n_agents", "batch"])
    assert len(rows) == 4 and rows["us"][2, 1] == fastest


def test_speedups_are_ratios_to_the_fastest_plain_form():
    times = {"2:4": [1.0, 1.0, 2.0], "packed dense": [2.0, 2.0, 2.0], "a": [3.0, 3.0, 3.0], "b": [9.0, 9.0, 9.0]}
    rows = {row["form"]: row for row in bench_cpu._rows(times, ["a", "b"], {"width": 1})}
    assert rows["2:4"]["speedup"] == 3.0 and rows["2:4"]["own"] == 2.0
    assert rows["b"]["speedup"] == pytest.approx(1 / 3) and "own" not in rows["b"]


def test_without_kernels_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(ConfigError, match="which are not built here"):
        bench_inference.bench_inference(2)


def test_gpu_table_is_drawn():
    layers = [
        {"level": "layer", "timing": timing, "width": width, "batch": batch, "speedup": 0.5 + width / 1e4}
        for timing in ("graph", "eager")
        for width in (64, 4096)
        for batch in (1, 4096)
    ]
    teams = [
        {"level": "team", "width": width, "batch": batch, "n_agents": n, "dtype": d, "speedup": 1 / n}
        for d in ("float16", "bfloat16")
        for width in (64, 128)
        for batch in (1, 32)
        for n in (1, 8)
    ]
    with style.paper_style():
        fig = gpu_figure(pd.DataFrame(layers + teams))
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[:2] == ["one layer, GPU time", "one call, with the host's time"]
    assert "whole step, bfloat16, batch 32" in titles and len([t for t in titles if t]) == 6
