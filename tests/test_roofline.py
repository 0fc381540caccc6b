import pytest

from k24lab.bench import roofline
from k24lab.bench.roofline import (
    DEVICES,
    HOST_TIME,
    find_device,
    layer_times,
    predict_layers,
    predict_steps,
    published_points,
    team_step_times,
)
from k24lab.errors import ConfigError
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


def test_eager_adds_only_host_time():
    graph, eager = (layer_times(A100, 256, 256, 8, timing=timing) for timing in ("graph", "eager"))
    assert tuple(e - g for e, g in zip(eager, graph, strict=True)) == pytest.approx(HOST_TIME["eager"])
    assert 120 <= HOST_TIME["eager"][1] <= 190


def test_agents_share_one_dense_launch_and_pay_one_each_for_sparse():
    one, eight = (layer_times(A100, 64, 64, 32, n) for n in (1, 8))
    assert eight[0] - 3.0 == pytest.approx(8 * (one[0] - 3.0))
    assert eight[1] == pytest.approx(8 * one[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("timing", HOST_TIME)
def test_speedup_stays_within_its_bounds(device, timing):
    table = predict_layers(device, WIDTHS, BATCHES, timing=timing)
    assert (table["kind"] == "predicted").all()
    assert table["speedup"].between(0.0, 2.0).all()
    assert table[["dense_us", "sparse_us"]].gt(0).all(axis=None)


@pytest.mark.parametrize("device", DEVICES)
def test_time_grows_with_batch_and_width(device):
    table = predict_layers(device, WIDTHS, BATCHES)
    for column in ("dense_us", "sparse_us"):
        times = table.pivot(index="width", columns="batch", values=column)
        assert times.diff().iloc[1:].gt(0).all(axis=None)
        assert times.T.diff().iloc[1:].ge(0).all(axis=None)


@pytest.mark.parametrize("device", ["A100", "H100", "RTX 3090"])
def test_narrow_agents_gain_nothing_and_eight_masks_lose(device):
    table = predict_layers(device, [64, 128, 256], [1, 8, 64])
    assert table["speedup"].between(0.95, 1.05).all()
    eight = predict_layers(device, [64], [1, 8, 64], n_agents=8)
    assert eight["speedup"].between(1 / 8, 0.25).all()


def test_large_layers_at_large_batch_reach_the_claim_on_ampere():
    table = predict_layers("A100", [4096, 8192], [8192])
    assert table["speedup"].between(1.5, 1.8).all()


def test_predictions_are_near_the_published_matmuls_they_were_not_fitted_to():
    dense, sparse = layer_times(find_device("A100"), 3072, 10240, 3072)
    assert dense == pytest.approx(870, rel=0.3)  # PyTorch tutorial: 0.870 ms
    assert sparse == pytest.approx(630, rel=0.4)  # 0.630 ms


def test_more_agents_lower_the_step_speedup():
    speedups = predict_steps(["A100"], [64], [1, 2, 4, 8, 16])["speedup"]
    assert speedups.is_monotonic_decreasing
    assert 1 / 16 < speedups.iloc[-1] < 0.1


def test_team_step_is_the_sum_of_its_layers():
    dense, sparse = team_step_times(A100, (16, 64, 16), batch=4, n_agents=2)  # every layer fits the tiles
    layers = agent_layers(16, 64, 16)
    each = [layer_times(A100, layer.out_features, layer.in_features, 4, 2) for layer in layers]
    assert (dense, sparse) == pytest.approx(tuple(map(sum, zip(*each, strict=True))))


def test_published_points_are_labelled_and_unique():
    points = published_points()
    assert (points["kind"] == "published").all()
    assert points["key"].is_unique
    assert points["speedup"].is_monotonic_increasing
    assert points["source"].str.len().gt(0).all()
    assert set(points["timing"]) <= {"kernel", "eager", "compiled"}


def test_no_published_win_for_agents_of_64_to_256():
    layers = published_points().dropna(subset=["out_features"])
    assert layers[["out_features", "in_features"]].min(axis=None) > 256


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_device("A10"), "unknown device 'A10'; did you mean 'A100'"),
        (lambda: layer_times(A100, 0, 64, 1), "out_features = 0"),
        (lambda: layer_times(A100, 64, 64, 1, timing="graphs"), "did you mean 'graph'"),
        (lambda: layer_times(A100, 64, 64, 1, n_agents=0), "n_agents = 0"),
        (lambda: team_step_times(A100, (21, 64, 5), 1, 0), "n_agents = 0"),
    ],
)
def test_errors_name_value_and_choices(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_the_cpu_has_peaks_that_were_measured(monkeypatch):
    times = {"peak": [20_000.0], "read": [10_000.0], "call": [2.0]}  # microseconds
    monkeypatch.setattr(roofline, "interleaved", lambda calls, rounds: {name: times[name] for name in calls})
    device = roofline.measure_cpu_device(rounds=1)
    assert device.dense_tflops == pytest.approx(2 * 1024**3 / 20e-3 / 1e12) and device.launch == 2.0
    assert device.bandwidth == pytest.approx(4 * 8192**2 / 10e-3 / 1e9) and device.itemsize == 4
    assert device.name.endswith("one thread") and len(device.name) > len(", one thread")
    dense, sparse = layer_times(device, 64, 64, 1)
    assert 2.0 < sparse < dense
