"""Aggregates over tasks against hand-worked values, scipy, and the coverage that they promise."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from scipy import stats as scipy_stats

from k24lab.analysis import aggregate
from k24lab.errors import ConfigError

TASKS = [np.array([0.0, 0.2, 0.4, 0.6]), np.array([0.8, 1.0, 1.2, 1.4]), np.array([0.1, 0.1, 0.1, 0.5])]


def table(scores):
    return aggregate.aggregate_table({"ours": scores}).set_index("aggregate")


def test_aggregates_by_hand():
    found = table(TASKS)
    assert found["value"].to_dict() == pytest.approx(
        {
            # 0, .1 .1 | .1 .2 .4 .5 .6 .8 | 1, 1.2, 1.4: three of twelve cut at each end
            "IQM": (0.1 + 0.2 + 0.4 + 0.5 + 0.6 + 0.8) / 6,
            "median": 0.3,
            "mean": (0.3 + 1.1 + 0.2) / 3,
            "optimality gap": 1 - (0.3 + (0.8 + 3.0) / 4 + 0.2) / 3,
        }
    )
    assert (found["n_tasks"] == 3).all() and (found["n_runs"] == 12).all()
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()


def test_missing_seeds_shorten_a_task_and_are_counted():
    found = table([np.array([1.0, np.nan, 3.0, np.nan]), np.array([5.0, 5.0, 5.0, 5.0])])
    assert found.loc["mean", "value"] == 3.5 and found.loc["mean", "n_runs"] == 6


def test_iqm_weighs_tasks_alike_however_many_seeds_they_have():
    few, many = np.array([1.0, 2.0]), np.array([5.0, 6.0])
    (alike,) = aggregate.interquartile_mean([few[None], many[None]])
    assert alike == pytest.approx(scipy_stats.trim_mean([1, 2, 5, 6], 0.25)) == 3.5
    (weighted,) = aggregate.interquartile_mean([np.repeat(few, 4)[None], many[None]])
    # Ten runs, the first task's weigh 1/16 each, the second's 1/4; a fifth is cut at each end.
    assert weighted == pytest.approx((0.05 * 1 + 0.25 * 2 + 0.25 * 5 + 0.05 * 6) / 0.6) == pytest.approx(alike)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=6, max_size=6), min_size=1, max_size=4))
def test_iqm_of_as_many_runs_in_every_task_is_that_of_all_runs(tasks):
    (found,) = aggregate.interquartile_mean([np.array(task)[None] for task in tasks])
    assert found == pytest.approx(scipy_stats.trim_mean(np.concatenate(tasks), 0.25), abs=1e-12)


def test_a_task_with_one_run_has_no_interval_and_one_without_is_an_error():
    assert table([np.array([1.0]), np.array([2.0, 3.0])])[["low", "high"]].isna().all(axis=None)
    with pytest.raises(ConfigError, match=r"at least one run; there are \[0, 1\]"):
        table([np.array([np.nan]), np.array([1.0])])


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=9), st.floats(-5, 5), st.floats(0.1, 5))
def test_aggregates_move_and_stretch_with_the_scores(values, shift, factor):
    scores = [np.array(values), np.array(values[::-1]) + 1]
    before = table(scores)["value"].drop("optimality gap")
    after = table([factor * s + shift for s in scores])["value"].drop("optimality gap")
    np.testing.assert_allclose(after, factor * before + shift, atol=1e-9)


@pytest.mark.parametrize("name", ["mean", "IQM"])
def test_intervals_cover_the_truth_nearly_as_often_as_they_say(name):
    rng = np.random.default_rng(0)
    inside = 0
    for k in range(200):
        scores = [rng.normal(size=10) for _ in range(4)]
        found = aggregate.aggregate_table({"x": scores}, n_resamples=300, seed=k).set_index("aggregate").loc[name]
        inside += found["low"] < 0 < found["high"]
    assert 0.86 < inside / 200 <= 0.99  # a bootstrap of ten runs is a little narrow


def test_profile_is_the_share_of_runs_above_each_threshold():
    found = aggregate.performance_profile(TASKS[:2], np.array([-1.0, 0.2, 1.0, 2.0]))
    assert found["share"].tolist() == [1.0, (0.5 + 1.0) / 2, (0.0 + 0.5) / 2, 0.0]
    assert (found["low"] <= found["share"]).all() and (found["share"] <= found["high"]).all()


def test_probability_of_improvement_is_mann_whitney():
    rng = np.random.default_rng(1)
    ours, theirs = [rng.normal(0.5, size=6), rng.integers(3, size=5)], [rng.normal(size=7), rng.integers(3, size=5)]
    expected = [scipy_stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(ours, theirs, strict=True)]
    value, low, high = aggregate.probability_of_improvement(ours, theirs)
    assert value == pytest.approx(np.mean(expected)) and low < value < high
    assert aggregate.probability_of_improvement(ours, ours)[0] == pytest.approx(0.5)
    assert aggregate.probability_of_improvement([np.ones(3)], [np.zeros(3)]) == (1.0, 1.0, 1.0)
    value, low, high = aggregate.probability_of_improvement([np.array([2.0])], [np.array([1.0, 3.0])])
    assert value == 0.5 and np.isnan(low) and np.isnan(high)


def test_area_under_a_curve_is_its_mean_height():
    curve = pd.Series([0.0, 2.0, 2.0], index=[0, 10, 40])
    assert aggregate.area_under_curve(curve) == pytest.approx((10 + 60) / 40)
    with pytest.raises(ConfigError, match="at least two points"):
        aggregate.area_under_curve(curve[:1])
