import itertools

import pytest

from k24lab.bench.roofline import (
    CLAIM,
    DEVICES,
    layer_times,
    predict_layers,
    predict_steps,
    published_points,
    team_step_times,
)
from k24lab.inference.costs import agent_layers

A100 = DEVICES["A100"]
WIDTHS, BATCHES = [64, 128, 256, 1024, 4096, 8192], [1, 8, 64, 512, 4096, 32768]


def test_memory_bound_layer_by_hand():
    # 64 x 64 in fp16, batch 1: 8192 bytes of weights (4608 packed) and 256 of activations at 0.8 * 2039 GB/s.
    dense, sparse = layer_times(A100, 64, 64, 1)
    assert dense == pytest.approx(3.0 + (8192 + 256) / (0.8 * 2039e3))
    assert sparse == pytest.approx(3.0 + (4608 + 256) / (0.8 * 2039e3))


def test_compute_bound_layer_by_hand():
    flops = 2 * 8192**3
    dense, sparse = layer_times(A100, 8192, 8192, 8192)
    assert dense == pytest.approx(3.0 + flops / (312e6 * 0.97))
    assert sparse == pytest.approx(3.0 + flops / (624e6 * 0.776))


def test_agents_share_one_dense_launch_and_pay_one_each_for_sparse():
    one, eight = (layer_times(A100, 64, 64, 32, n) for n in (1, 8))
    assert eight[0] - 3.0 == pytest.approx(8 * (one[0] - 3.0))
    assert eight[1] == pytest.approx(8 * one[1])


def test_speedup_stays_within_its_bounds():
    table = predict_layers(WIDTHS, BATCHES)
    assert set(table["device"]) == set(DEVICES) and table["speedup"].between(0.0, 2.0).all()
    assert table[["dense_us", "sparse_us"]].gt(0).all(axis=None)


@pytest.mark.parametrize("device", DEVICES)
def test_time_grows_with_batch_and_width(device):
    table = predict_layers(WIDTHS, BATCHES).query("device == @device")
    for column in ("dense_us", "sparse_us"):
        times = table.pivot(index="width", columns="batch", values=column)
        assert times.diff().iloc[1:].gt(0).all(axis=None)
        assert times.T.diff().iloc[1:].ge(0).all(axis=None)


@pytest.mark.parametrize("device", ["A100", "H100", "RTX 3090"])
def test_narrow_agents_gain_nothing_and_eight_masks_lose(device):
    for width, batch in itertools.product([64, 128, 256], [1, 8, 64]):
        dense, sparse = layer_times(DEVICES[device], width, width, batch)
        assert 0.95 <= dense / sparse <= 1.05
    dense, sparse = layer_times(DEVICES[device], 64, 64, 8, n_agents=8)
    assert 1 / 8 <= dense / sparse <= 0.25


def test_large_layers_at_large_batch_reach_the_claim_on_ampere():
    table = predict_layers([4096, 8192], [8192]).query("device == 'A100'")
    assert table["speedup"].between(*CLAIM).all()


def test_predictions_are_near_the_published_matmuls_they_were_not_fitted_to():
    dense, sparse = layer_times(A100, 3072, 10240, 3072)
    assert dense == pytest.approx(870, rel=0.3)  # PyTorch tutorial: 0.870 ms
    assert sparse == pytest.approx(630, rel=0.4)  # 0.630 ms


def test_more_agents_lower_the_step_speedup():
    speedups = predict_steps([64], [1, 2, 4, 8, 16], 1, 21, 5).query("device == 'A100'")["speedup"]
    assert speedups.is_monotonic_decreasing
    assert 1 / 16 < speedups.iloc[-1] < 0.1


def test_team_step_is_the_sum_of_its_layers():
    dense, sparse = team_step_times(A100, (16, 64, 16), batch=4, n_agents=2)  # every layer fits the tiles
    layers = agent_layers(16, 64, 16)
    each = [layer_times(A100, layer.out_features, layer.in_features, 4, 2) for layer in layers]
    assert (dense, sparse) == pytest.approx(tuple(map(sum, zip(*each, strict=True))))


def test_published_points_are_whole_and_sorted():
    points = published_points()
    assert points["speedup"].is_monotonic_increasing and len(points) == 25
    assert points["source"].str.len().gt(0).all()
    assert set(points["timing"]) <= {"kernel", "eager", "compiled"}


def test_no_published_win_for_agents_of_64_to_256():
    layers = published_points().dropna(subset=["out_features"])
    assert layers[["out_features", "in_features"]].min(axis=None) > 256
