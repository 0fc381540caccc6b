"""Settings in the place of tasks, and what masks know of roles that agents share."""

import numpy as np
import pandas as pd
import pytest

from k24lab.analysis import aggregate, comparison_plots, load as results, mask_tables, settings, stats
from k24lab.analysis.similarity import hamming_distance
from k24lab.analysis.stats import mean_interval
from k24lab.errors import RunError
from k24lab.lab.config import build_config
from k24lab.lab.find_runs import find_runs
from k24lab.lab.train import train


@pytest.fixture
def runs(tiny_config, home):
    tiny = {"t_max": 400, "test_interval": 200, "task": "rolenav:n_agents=4,n_roles=2"}
    for method, width, seed in [("k24", 8, 0), ("k24", 8, 1), ("k24", 16, 0), ("fups", 8, 0), ("fups", 16, 0)]:
        train(tiny_config(**tiny, method=method, hidden_dim=width, seed=seed), "g", progress=False)
    return find_runs("g")


def test_a_setting_is_a_task_with_a_width_and_its_variants_are_methods(runs):
    metrics, summaries = settings.load_settings(runs, ["hidden_dim"])
    names = [f"rolenav:n_agents=4,n_roles=2, hidden_dim={width}" for width in (8, 16)]
    for frame in (metrics, summaries):
        assert sorted(frame["task"].unique()) == sorted(names)
        assert set(frame["variant"]) == {"k24", "fups"}
    counts = summaries.groupby(["task", "variant"]).size()
    assert counts[(names[0], "k24")] == 2 and counts.sum() == len(runs) == 5
    assert summaries.groupby("task")["hidden_dim"].nunique().eq(1).all()
    first = summaries.iloc[0]
    curve = metrics[metrics["run"] == first["run"]].dropna(subset=["test_return_mean"])
    times, returns = curve["t_env"].to_numpy(), curve["test_return_mean"].to_numpy()
    assert len(times) > 2 and summaries[settings.OVER_TRAINING].notna().all()
    height = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(times, times[1:], returns, returns[1:], strict=False))
    assert first[settings.OVER_TRAINING] == pytest.approx(height / times[-1])
    with pytest.raises(RunError, match="did you mean 'hidden_dim'"):
        settings.load_settings(runs, ["hiden_dim"])


def test_role_table_has_the_distances_of_the_pairs_and_the_gap_with_its_interval(runs):
    masked = [run for run in runs if run.config["method"] == "k24"]
    table = mask_tables.role_table(masked, 2).set_index("layer")
    layers = results.last_patterns(masked[0])
    assert set(table.index) == {"all", *layers} and (table["n"] == len(masked)).all()
    same, different = [], []
    for run in masked:
        distance = hamming_distance(results.last_patterns(run)["fc2"].index)
        same.append(np.mean([distance[0, 2], distance[1, 3]]))
        different.append(np.mean([distance[p] for p in [(0, 1), (0, 3), (2, 1), (2, 3)]]))
    gap, row = mean_interval(np.subtract(different, same)), table.loc["fc2"]
    assert (row["same"], row["different"]) == pytest.approx((np.mean(same), np.mean(different)))
    assert (row["gap"], row["low"], row["high"]) == pytest.approx(tuple(map(float, gap[:3])))
    for n_roles in (1, 4):
        with pytest.raises(RunError, match=f"n_roles = {n_roles} of 4 agents"):
            mask_tables.role_table(masked, n_roles)


def test_improvement_over_the_reference_of_each_task():
    runs = [("a", "random24", 1.0), ("a", "random24", 2.0), ("a", "k24", 3.0), ("a", "k24", 1.5), ("a", "nops", 0.0)]
    frame = pd.DataFrame([*runs, ("b", "k24", 5.0)], columns=["task", "variant", "test_return_mean"])
    table = aggregate.improvement_table(frame, "random24")
    assert table[["task", "variant", "n", "n_reference", "probability"]].to_numpy().tolist() == [
        ["a", "k24", 2, 2, 0.75],
        ["a", "nops", 1, 2, 0.0],
    ]
    assert table["low"][0] < 0.75 < table["high"][0] and table["low"].isna()[1]
    assert aggregate.improvement_table(frame[frame["task"] == "b"], "random24").empty


def test_both_measures_stand_below_each_other():
    runs = pd.DataFrame({"task": "a", "variant": ["random24", "k24"], "method": ["random24", "k24"], "seed": 0})
    runs = runs.assign(test_return_mean=[1.0, 3.0], test_return_over_training=[2.0, 1.0])
    for table, column, values in [
        (stats.difference_table, "difference", [2, -1]),
        (stats.paired_table, "difference", [2, -1]),
        (aggregate.improvement_table, "probability", [1, 0]),
    ]:
        both = settings.both_measures(table, runs, "random24")
        assert list(both["measure"]) == ["final", "over training"]
        assert list(both[column]) == values


def test_difference_marks_show_every_variant_of_every_task_and_its_interval():
    table = pd.DataFrame(
        {
            "task": ["a", "a", "b"],
            "variant": ["k24", "nops", "k24"],
            "difference": [1.0, -1.0, 0.5],
            "low": [0.5, -2.0, np.nan],
            "high": [1.5, 0.0, np.nan],
        }
    )
    ax = comparison_plots.difference_marks(table, "random masks", title="final")
    assert ax.get_title() == "final"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    k24, nops = ax.containers
    assert list(k24.lines[0].get_xdata()) == [1.0, 0.5]
    assert [x for x, _ in nops.lines[2][0].get_segments()[0]] == [-2.0, 0.0]
    assert "random masks" in ax.get_xlabel()


def test_the_recipe_is_what_the_method_stands_for():
    config = build_config({"method": "k24-alpha"})
    assert (config.noise, config.diversity_coef, config.alpha_lr_factor) == ("none", 0.0, 5.0)
    assert config.score_weight_power == config.score_ema_power == 0.0
