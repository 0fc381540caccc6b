"""What a paper shows of several tasks: scales, scores, tables for LaTeX, the export, and the figures' data."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from k24lab.analysis import aggregate, comparison_plots, export
from k24lab.analysis.curve_plots import band_lines, panels
from k24lab.errors import RunError, RunWarning
from k24lab.inference.method_costs import method_costs
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.methods import METHODS

FINAL = {  # variant -> task -> final returns
    "k24": {"a": [3.0, 5.0], "vmas/b": [10.0, 10.0]},
    "fups": {"a": [1.0, 1.0], "vmas/b": [0.0, 10.0]},
    "nops": {"a": [4.0, 4.0]},
}


@pytest.fixture
def frames():
    """Metrics and summaries of runs that rise in a straight line from -1 to their final return in 100 env steps."""
    rows, last = [], []
    for variant, tasks in FINAL.items():
        for task, values in tasks.items():
            for seed, final in enumerate(values):
                run = {"run": f"{task}-{variant}-{seed}", "task": task, "variant": variant, "seed": seed, "t_max": 100}
                run["method"] = variant
                last.append(run | {"test_return_mean": final})
                rows += [run | {"t_env": t, "test_return_mean": -1 + (final + 1) * t / 100} for t in (0, 50, 100)]
                rows.append(run | {"t_env": 60, "loss_td": 1.0})
    return pd.DataFrame(rows), pd.DataFrame(last)


def test_scale_runs_from_untrained_networks_to_the_best_mean_unless_it_is_given(frames):
    assert aggregate.task_scale(*frames) == {"a": (-1.0, 4.0), "vmas/b": (-1.0, 10.0)}
    assert aggregate.task_scale(*frames, {"a": [0.0, 2.0]})["a"] == (0.0, 2.0)
    with pytest.raises(RunError, match="unknown task 'vmas/c'; did you mean 'vmas/b'"):
        aggregate.task_scale(*frames, {"vmas/c": [0.0, 1.0]})
    for low, high in [(2.0, 2.0), (2.0, np.inf), (np.nan, 2.0)]:
        with pytest.raises(RunError, match=f"a: a return of {low:.4g} would count as 0 and {high:.4g} as 1, but must"):
            aggregate.task_scale(*frames, {"a": [low, high]})
    metrics, summaries = frames
    with pytest.raises(RunError, match=r"vmas/b: a return of -1 would count as 0 and -3 as 1.*scale\['vmas/b'\]"):
        aggregate.task_scale(metrics, summaries.assign(test_return_mean=-3.0), {"a": [0.0, 1.0]})


def test_scores_lie_on_the_scale_and_incomplete_variants_stay_out_of_aggregates(frames):
    metrics, summaries = frames
    scale = aggregate.task_scale(metrics, summaries)
    table = aggregate.aggregates(metrics, summaries, scale)
    assert set(table["variant"]) == {"k24", "fups"}
    values = table.set_index(["variant", "aggregate"])["value"]
    assert values["k24", "mean"] == pytest.approx((0.8 + 1.2) / 2)
    assert values["fups", "mean"] == pytest.approx((0.4 + (1 / 11 + 1) / 2) / 2)
    assert values["k24", "area under curve"] == pytest.approx(0.5)  # straight lines: half of the final score


def test_efficiency_is_the_score_against_the_share_of_the_budget(frames):
    metrics, summaries = frames
    table = aggregate.efficiency(metrics, aggregate.task_scale(metrics, summaries))
    ours = table[table["variant"] == "k24"]
    assert ours["iqm"].to_numpy() == pytest.approx(ours["budget"].to_numpy())  # of 0.8, 1.2, 1 and 1 it is 1
    assert (ours["low"] <= ours["iqm"] + 1e-9).all() and (ours["high"] >= ours["iqm"] - 1e-9).all()


def test_profiles_and_improvements_of_complete_variants(frames):
    metrics, summaries = frames
    scale = aggregate.task_scale(metrics, summaries)
    profile = aggregate.profiles(summaries, scale)
    assert set(profile["variant"]) == {"k24", "fups"}
    at = profile[np.isclose(profile["threshold"], 0.5)].set_index("variant")["share"]
    assert at.to_dict() == {"k24": 1.0, "fups": 0.25}
    better = aggregate.improvements(summaries, "k24")
    assert better.to_dict("records")[0]["probability"] == pytest.approx((1 + 0.75) / 2)
    with pytest.raises(RunError, match="'nops' does not have runs in all tasks"):
        aggregate.improvements(summaries, "nops")
    nops = [frame[frame["variant"] == "nops"] for frame in frames]
    both = r"no variant has finished runs in all of a, vmas/b \(there are: nops in a\)"
    with pytest.raises(RunError, match=both):
        aggregate.profiles(nops[1], scale)
    with pytest.raises(RunError, match=both):
        aggregate.aggregates(*nops, scale)
    with pytest.raises(RunError, match=both):
        aggregate.efficiency(nops[0], scale)
    assert list(aggregate.complete_returns(summaries)) == ["k24", "fups"]
    assert list(aggregate.complete_returns(nops[1])) == ["nops"]


def test_latex_table_marks_a_winner_only_where_intervals_separate(frames):
    rows = [
        {"task": task, "variant": v, "test_return_mean": x}
        for task, groups in {
            "clear_1": {"k24": [5.0, 5.1, 4.9], "fups": [1.0, 1.1, 0.9]},
            "close": {"k24": [5.0, 1.0, 3.0], "fups": [1.0, 3.0, 4.0]},
            "single": {"k24": [5.0], "fups": [1.0, 1.1]},
        }.items()
        for v, values in groups.items()
        for x in values
    ]
    table = export.return_table(pd.DataFrame(rows))
    assert list(table.columns) == ["method", "clear_1", "close", "single"]
    ours = table.iloc[0]
    assert ours["method"] == "K-2:4" and ours["clear_1"] == r"$\mathbf{5.00} \pm 0.25$"
    assert r"\mathbf" not in table["close"].str.cat() + table["single"].str.cat()
    assert ours["single"] == "$5.00$"
    assert export.return_table(frames[1]).iloc[2]["vmas/b"] == "--"


def test_latex_is_one_escaped_tabular_of_booktabs_and_saved_alike_each_time(tmp_path):
    table = pd.DataFrame({"method": ["K-2:4 (α only) & co", "b"], "x_1": [r"$\mathbf{5.00} \pm 0.25$", "50 %"]})
    path = export.save_latex(table, "t", tmp_path)
    text = path.read_text()
    rows = [r"method & x\_1", r"K-2:4 ($\alpha$ only) \& co & $\mathbf{5.00} \pm 0.25$", r"b & 50 \%"]
    assert text.splitlines()[:2] == [r"\begin{tabular}{lr}", r"\toprule"] and text.endswith("\\end{tabular}\n")
    assert [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith("\\\\")] == rows
    assert export.save_latex(table, "t", tmp_path).read_text() == text


def test_export_has_the_layout_of_marl_eval(frames):
    metrics, summaries = frames
    metrics["test_battle_won_mean"] = np.where(metrics["task"] == "vmas/b", 0.5, np.nan)
    summaries["test_battle_won_mean"] = np.where(summaries["task"] == "vmas/b", 0.75, np.nan)
    data = json.loads(json.dumps(export.marl_eval(metrics, summaries)))
    assert data.keys() == {"a", "vmas"} and data["vmas"].keys() == {"b"}
    assert data["a"]["a"].keys() == {"k24", "fups", "nops"}
    run = data["vmas"]["b"]["fups"]["seed_1"]
    assert run["step_2"] == {"step_count": 100, "return": [10.0], "win_rate": [0.5]}
    assert run["absolute_metrics"] == {"return": [10.0], "win_rate": [0.75]}
    assert list(run) == ["step_0", "step_1", "step_2", "absolute_metrics"]
    assert "win_rate" not in data["a"]["a"]["k24"]["seed_0"]["step_0"]


def test_seeds_that_marl_eval_would_miss_are_named(frames):
    metrics, summaries = frames
    more = metrics[metrics["task"] == "a"].assign(task="a:n=8")
    short = more[~((more["variant"] == "fups") & (more["seed"] == 1)) & (more["variant"] != "nops")]
    runs = pd.concat([metrics, short]), pd.concat([summaries, summaries[summaries["task"] == "a"].assign(task="a:n=8")])
    lacks = ["a, a:n=8: fups lacks seeds 1", "a, a:n=8: nops lacks seeds 0, 1"]
    with pytest.warns(RunWarning) as warned:
        shared = export.marl_eval(*runs)
    assert [str(w.message) for w in warned] == [f"not for marl-eval: {text}" for text in lacks]
    assert {task: {name: set(seeds) for name, seeds in by.items()} for task, by in shared["a"].items()} == {
        task: {"k24": {"seed_0"}, "fups": {"seed_0"}} for task in ("a", "a:n=8")
    }
    assert shared["vmas"] == export.marl_eval(metrics, summaries)["vmas"]


def test_each_run_is_a_line_with_its_settings_final_numbers_and_evaluations(frames, tmp_path):
    metrics, summaries = frames
    summaries["unit_type_names"] = [None] * (len(summaries) - 1) + [["x", "y"]]
    (tmp_path / "runs.jsonl").write_text(export.run_lines(metrics, summaries))
    read = pd.read_json(tmp_path / "runs.jsonl", lines=True)
    pd.testing.assert_frame_equal(
        read[["task", "variant", "seed", "t_max"]], summaries[["task", "variant", "seed", "t_max"]]
    )
    assert read["evaluations"][1] == {"t_env": [0, 50, 100], "test_return_mean": [-1, 2, 5]}
    assert "unit_type_names" not in json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])
    assert read["unit_type_names"].iloc[-1] == ["x", "y"]


def test_costs_count_the_parameters_that_are_trained():
    costs = method_costs(18, 64, 5, 3).set_index("method")
    for method in METHODS:
        config = build_config({"method": method})
        agent = build_agent(config, 18 + 3 * config.agent_id, 5, 3)
        trained = sum(p.numel() for p in agent.parameters() if p.requires_grad)
        assert costs.loc[method, "parameters"] == trained, method


def test_costs_of_masks_by_hand():
    costs = method_costs(8, 4, 2, 2).set_index("method")
    weights, biases = 8 * 4 + 2 * 4 * 12 + 2 * 4 * 4 + 4 * 2, 4 + 12 + 12 + 4 + 4 + 2
    assert costs.loc["fups", "multiply_adds"] == weights == 2 * costs.loc["k24", "multiply_adds"]
    assert costs.loc["fups", "memory_bytes"] == 2 * (weights + biases)
    assert costs.loc["nops", "memory_bytes"] == 2 * costs.loc["fups", "memory_bytes"]
    assert costs.loc["k24", "kept"] == 0.5 and np.isnan(costs.loc["kaleidoscope", "kept"])
    assert costs.loc["multih", "memory_bytes"] - costs.loc["fups", "memory_bytes"] == 2 * (4 * 2 + 2)
    fc = 8 * 4 + 2 * 4 * 4 + 4 * 2
    assert costs.loc["kaleidoscope", "memory_bytes"] - costs.loc["fups", "memory_bytes"] == 2 * fc / 8
    assert method_costs(6, 4, 2, 2).set_index("method").loc["random24", "kept"] > 0.5  # a last group of two keeps both


def test_figures_show_every_variant_with_its_interval(frames):
    metrics, summaries = frames
    scale = aggregate.task_scale(metrics, summaries)
    table = aggregate.aggregates(metrics, summaries, scale)
    fig, axes = panels(5, n_columns=5)
    comparison_plots.aggregate_panels(table, axes)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["K-2:4", "shared"]
    assert [len(ax.containers) for ax in axes] == [2] * 5
    plt.close(fig)
    ax = band_lines(aggregate.profiles(summaries, scale), "threshold", "share")
    assert [line.get_label() for line in ax.get_lines()] == ["K-2:4", "shared"]
    plt.close("all")


def test_effects_far_beyond_the_others_are_numbers_at_the_edge():
    names = ["k24 a=1", "k24 a=2", "k24 a=3", "random24"]
    rows = zip(names, [0.5, -0.25, -9.0, np.nan], [0.1, -1.0, -9.5, np.nan], [0.9, 0.5, -8.5, np.nan], strict=True)
    table = pd.DataFrame(rows, columns=["variant", "difference", "low", "high"])
    ax = comparison_plots.effect_marks(table, panels(1)[1][0], names, title="task")
    assert ax.get_xlim() == pytest.approx((-1.1, 1.1))
    assert [text.get_text() for text in ax.texts] == ["\N{MINUS SIGN}9.0"]
    bars = [bar.get_segments()[0][:, 0].tolist() for bar in ax.collections]
    assert bars[:2] == [pytest.approx([0.1, 0.9]), pytest.approx([-1.0, 0.5])]
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "random 2:4"  # a variant that a task lacks
    ax = comparison_plots.effect_marks(table.iloc[:0], panels(1)[1][0], names)  # a task without the reference
    assert ax.get_xlim() == (-1, 1) and not ax.collections
    plt.close("all")
