"""Intervals against hand-worked values and against scipy; what few or missing seeds give."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from k24lab.analysis import stats
from k24lab.errors import RunError


def frame(**runs):
    """Metrics of runs given as {name: {t_env: value}}."""
    rows = [{"run": run, "t_env": t, "value": v} for run, points in runs.items() for t, v in points.items()]
    return pd.DataFrame(rows).assign(task="rolenav", variant="k24", method="k24")


def test_mean_interval_by_hand():
    # 1, 2, 3: s = 1, t(0.975; 2) = 4.302653, half width 4.302653 / sqrt(3).
    mean, low, high, n = stats.mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (mean, n) == (2.0, 3)
    assert [low, high] == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)


def test_mean_interval_agrees_with_scipy_columnwise_and_leaves_out_nan():
    values = np.random.default_rng(0).normal(size=(6, 3))
    values[4:, 1] = np.nan
    estimate = stats.mean_interval(values)
    assert estimate.n.tolist() == [6, 4, 6]
    for k, column in enumerate(values.T):
        column = column[~np.isnan(column)]
        expected = scipy_stats.ttest_1samp(column, 0).confidence_interval(0.95)
        assert (estimate.low[k], estimate.high[k]) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "mean"), [([3.0], 3.0), ([3.0, np.nan], 3.0), ([np.nan], np.nan)])
def test_fewer_than_two_runs_have_no_interval(values, mean):
    estimate = stats.mean_interval(np.array(values))
    assert estimate.mean.item() == pytest.approx(mean, nan_ok=True)
    assert np.isnan([estimate.low, estimate.high]).all()


def test_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(size=(5, 4000))
    estimate = stats.mean_interval(draws)
    covered = ((estimate.low < 0) & (estimate.high > 0)).mean()
    assert covered == pytest.approx(0.95, abs=0.015)


def test_difference_interval_agrees_with_welch():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 5), rng.normal(0, 3, 8)
    welch = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert stats.difference_interval(a, b) == pytest.approx((a.mean() - b.mean(), welch.low, welch.high))


def test_difference_interval_of_degenerate_samples():
    assert stats.difference_interval(np.ones(3), np.zeros(3)) == (1.0, 1.0, 1.0)
    assert stats.difference_interval(np.array([2.0]), np.zeros(3)) == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)
    assert np.isnan(stats.difference_interval(np.array([np.nan]), np.zeros(3))).all()


def test_curves_use_the_times_that_all_runs_share():
    curve = stats.curves(frame(a={0: 1.0, 10: 3.0}, b={0: 3.0, 10: 5.0}), "value")
    assert curve["t_env"].tolist() == [0, 10]
    assert curve["mean"].tolist() == [2.0, 4.0]
    assert curve["n"].tolist() == [2, 2]
    # s = sqrt(2), t(0.975; 1) = 12.7062: half width 12.7062.
    assert curve["low"].tolist() == pytest.approx([2 - 12.7062, 4 - 12.7062], abs=1e-4)


def test_curves_interpolate_runs_with_other_times():
    metrics = frame(a={0: 0.0, 10: 10.0}, b={2: 2.0, 12: 12.0})  # both are value = t_env
    curve = stats.curves(metrics, "value")
    assert (curve["t_env"].iloc[0], curve["t_env"].iloc[-1], len(curve)) == (2, 10, stats.GRID_POINTS)
    np.testing.assert_allclose(curve["mean"], curve["t_env"])


def test_curves_keep_runs_that_never_overlap():
    curve = stats.curves(frame(a={0: 1.0, 5: 1.0}, b={8: 2.0, 9: 2.0}), "value")
    assert curve["t_env"].iloc[[0, -1]].tolist() == [0, 9] and set(curve["n"]) == {0, 1}
    assert set(curve["mean"].dropna()) == {1.0, 2.0}


def test_curves_leave_out_rows_without_the_metric_and_name_unknown_metrics():
    metrics = pd.concat([frame(a={0: 1.0, 5: 2.0}), frame(a={3: np.nan})])
    assert stats.curves(metrics, "value")["t_env"].tolist() == [0, 5]
    with pytest.raises(RunError, match="unknown metric 'vale'; did you mean 'value'"):
        stats.curves(metrics, "vale")


def summaries():
    scores = {"k24": [1.0, 2.0, 3.0], "fups": [5.0], "nops": [7.0, 7.0, np.nan]}
    rows = [{"variant": m, "method": m, "test_return_mean": v} for m, values in scores.items() for v in values]
    return pd.DataFrame(rows).assign(task="rolenav")


def test_final_table_says_n_and_puts_the_best_first():
    table = stats.final_table(summaries())
    assert table[["variant", "n", "mean"]].values.tolist() == [["nops", 2, 7.0], ["fups", 1, 5.0], ["k24", 3, 2.0]]
    assert np.isnan(table.loc[1, "low"])
    assert table.loc[2, "low"] == pytest.approx(2 - 2.484138, abs=1e-6)


def test_tables_list_tasks_in_order_and_the_best_of_each_first():
    rows = [(t, g, v, x) for t in ("b", "a") for g in ("y", "x") for v, x in (("k24", 1.0), ("fups", 3.0), ("nops", 2))]
    frame = pd.DataFrame(rows, columns=["task", "group", "variant", "test_return_mean"])
    frame["method"] = frame["variant"]
    order = [(t, g, v) for t in ("a", "b") for g in ("x", "y") for v in ("fups", "nops", "k24")]
    table = stats.final_table(frame, by=("task", "group", "variant"))
    assert list(table[["task", "group", "variant"]].itertuples(index=False, name=None)) == order
    assert stats.final_table(frame, by=("variant",))["variant"].tolist() == ["fups", "nops", "k24"]
    differences = stats.difference_table(frame, "k24")
    assert list(differences["task"]) == ["a", "a", "b", "b"] and list(differences["variant"]) == ["fups", "nops"] * 2


def test_difference_table_compares_every_variant_with_the_reference():
    table = stats.difference_table(summaries(), "k24")
    assert table[["variant", "difference", "n", "n_reference"]].values.tolist() == [
        ["nops", 5.0, 2, 3],
        ["fups", 3.0, 1, 3],
    ]
    assert stats.difference_table(summaries(), "random24").empty


def variants_of_one_task(**returns):
    """A run per value: `variants_of_one_task(k24=[1.0, 2.0], **{"k24 lr=0.1": [3.0]})`."""
    rows = [("a", name.split(" ")[0], name, x) for name, values in returns.items() for x in values]
    return pd.DataFrame(rows, columns=["task", "method", "variant", "test_return_mean"])


def test_a_variant_is_compared_with_the_references_of_the_same_settings():
    means = {
        "random24": 1.0,
        "random24 mask_rnn=False": 2.0,
        "k24": 4.0,
        "k24 mask_rnn=False": 7.0,
        "k24 noise=none": 9.0,
    }
    frame = variants_of_one_task(**{name: [mean] for name, mean in means.items()})
    pairs = stats.difference_table(frame, "random24").set_index("variant")[["reference", "difference"]]
    assert pairs.to_dict("index") == {
        "k24": {"reference": "random24", "difference": 3.0},
        "k24 mask_rnn=False": {"reference": "random24 mask_rnn=False", "difference": 5.0},
        "k24 noise=none": {"reference": "random24", "difference": 8.0},
        "random24 mask_rnn=False": {"reference": "random24", "difference": 1.0},
    }
    ablation = stats.difference_table(frame, "k24").set_index("variant")["reference"]
    assert ablation["k24 mask_rnn=False"] == ablation["k24 noise=none"] == "k24" and "k24" not in ablation


def test_a_figure_of_curves_holds_the_methods_and_what_is_furthest_from_the_reference():
    means = {"k24": 5.0, "k24 a=1": 5.1, "k24 a=2": 9.0, "k24 a=3": 5.2, "random24": 5.0, "k24 a=4": 1.0}
    frame = variants_of_one_task(**{name: [mean] for name, mean in means.items()})
    assert stats.most_different(frame, "k24", most=4) == ["k24", "k24 a=2", "random24", "k24 a=4"]
    assert stats.most_different(frame, "k24", most=6) == list(means)
    # Another task on a larger scale counts no more than this one.
    other = variants_of_one_task(**{"k24": [500.0], "k24 a=1": [510.0], "fups": [0.0]}).assign(task="b")
    assert "k24 a=1" not in stats.most_different(pd.concat([frame, other]), "k24", most=5)


def test_what_no_task_compares_with_the_reference_leaves_a_figure_of_curves_first():
    frame = variants_of_one_task(**{"k24": [5.0], "k24 a=1": [5.1], "k24 a=2": [9.0]})
    alone = variants_of_one_task(**{"nops a=1": [1.0]}).assign(task="b")
    assert stats.most_different(pd.concat([alone, frame]), "k24", most=3) == ["k24", "k24 a=1", "k24 a=2"]


def test_long_table_puts_the_key_first():
    table = stats.long_table({"a": pd.DataFrame({"x": [1]}), "b": pd.DataFrame({"x": [2]})}, "name")
    assert table.values.tolist() == [["a", 1], ["b", 2]]
    assert stats.long_table({}, "name").columns.tolist() == ["name"]


def test_paired_table_compares_seed_by_seed():
    rows = [("a", "random24", seed, value) for seed, value in enumerate([1.0, 5.0, 9.0])]
    rows += [("a", "k24", seed, value) for seed, value in enumerate([2.0, 7.0, 8.0])]
    rows += [("a", "nops", 2, 10.0), ("a", "nops", 7, 10.0), ("a", "fups", 7, 1.0), ("b", "k24", 0, 1.0)]
    frame = pd.DataFrame(rows, columns=["task", "variant", "seed", "test_return_mean"])
    table = stats.paired_table(frame, "random24").set_index("variant")
    assert list(table.index) == ["k24", "nops"] and (table["task"] == "a").all()
    ours = table.loc["k24"]
    test = scipy_stats.ttest_rel([2.0, 7.0, 8.0], [1.0, 5.0, 9.0]).confidence_interval(0.95)
    assert (ours["n"], ours["n_better"]) == (3, 2)
    assert (ours["difference"], ours["low"], ours["high"]) == pytest.approx((2 / 3, test.low, test.high))
    assert table.loc["nops", "n"] == 1 and np.isnan(table.loc["nops", "low"])
