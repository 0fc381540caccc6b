"""Aggregates against rliable, which cannot be imported beside pandas 3: `make test-oracle` makes its environment."""

import numpy as np
import pytest

rliable = pytest.importorskip("rliable", reason="rliable needs an environment of its own: make test-oracle")

from rliable import library, metrics  # noqa: E402

from k24lab.analysis import aggregate  # noqa: E402

RUNS, TASKS = 6, 5
SCORES = np.random.default_rng(0).normal(0.6, 0.4, size=(RUNS, TASKS))  # rliable's shape
OTHERS = np.random.default_rng(1).normal(0.5, 0.3, size=(RUNS + 2, TASKS))
OURS = {
    "IQM": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}


@pytest.mark.parametrize("name", OURS)
def test_aggregates_and_their_intervals(name):
    found = aggregate.aggregate_table({"x": list(SCORES.T)}, n_resamples=20_000).set_index("aggregate").loc[name]
    assert found["value"] == pytest.approx(OURS[name](SCORES))
    _, intervals = library.get_interval_estimates({"x": SCORES}, lambda x: np.array([OURS[name](x)]), reps=20_000)
    assert (found["low"], found["high"]) == pytest.approx(intervals["x"][:, 0], abs=0.01)


def test_probability_of_improvement():
    value, low, high = aggregate.probability_of_improvement(list(SCORES.T), list(OTHERS.T), n_resamples=20_000)
    assert value == pytest.approx(metrics.probability_of_improvement(SCORES, OTHERS))
    _, intervals = library.get_interval_estimates(
        {"x": (SCORES, OTHERS)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=2_000
    )
    assert (low, high) == pytest.approx(intervals["x"][:, 0], abs=0.02)


def test_performance_profile():
    thresholds = np.linspace(-0.5, 1.5, 21)
    found = aggregate.performance_profile(list(SCORES.T), thresholds, n_resamples=20_000)
    shares, intervals = library.create_performance_profile({"x": SCORES}, thresholds, reps=20_000)
    assert found["share"].to_numpy() == pytest.approx(shares["x"])
    assert pytest.approx(intervals["x"], abs=0.035) == found[["low", "high"]].to_numpy().T  # steps of 1 / 30
