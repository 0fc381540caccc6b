"""Kaleidoscope's thresholds and the magnitude mask, against their definitions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from k24lab.core.baselines import LAYER_WEIGHTS, MagnitudeLinear24, ThresholdLinear, mask_distance
from k24lab.errors import ConfigError
from k24lab.lab.config import build_config
from k24lab.marl.learner import build_learner


def half_kept(in_features=6, out_features=5, n_masks=3, seed=0):
    """A layer whose masks drop about half of the weights."""
    torch.manual_seed(seed)
    layer = ThresholdLinear(in_features, out_features, n_masks).double()
    size = layer.weight.detach().abs()
    with torch.no_grad():
        layer.threshold.copy_(
            torch.logit((size * torch.empty_like(layer.threshold).uniform_(0.5, 1.5)).clamp_max(0.99))
        )
    return layer


def test_thresholds_start_where_next_to_nothing_is_dropped():
    layer = ThresholdLinear(64, 64, 4)
    assert -10 <= layer.threshold.min() < -9.9 and -5.1 < layer.threshold.max() <= -5
    assert layer.sparsity().shape == (4,) and 0 < layer.sparsity().max() < 0.04
    assert (layer.effective()[0] - layer.weight).abs().max() <= torch.sigmoid(torch.tensor(-5.0))


def test_soft_threshold_and_its_gradients_are_those_of_the_definition():
    layer = half_kept()
    weight, bias = layer.effective()
    assert bias.shape == (1, 5)
    upstream = torch.randn_like(weight)
    (weight * upstream).sum().backward()
    for m, o, i in itertools.product(range(3), range(5), range(6)):
        w, s = layer.weight[o, i].item(), layer.threshold[m, o, i].item()
        t = 1 / (1 + math.exp(-s))
        expected = math.copysign(max(abs(w) - t, 0), w)
        assert weight[m, o, i].item() == pytest.approx(expected)
        by_threshold = -math.copysign(1, w) * t * (1 - t) * upstream[m, o, i].item() if abs(w) > t else 0.0
        assert layer.threshold.grad[m, o, i].item() == pytest.approx(by_threshold)
    by_weight = (upstream * (weight != 0)).sum(dim=0)
    torch.testing.assert_close(layer.weight.grad, by_weight)
    assert 0.3 < layer.sparsity().mean() < 0.7


def test_mask_distance_is_the_sum_over_both_orders_of_all_pairs():
    layers = [half_kept(seed=k, in_features=4 + k) for k in range(4)]
    expected = 0.0
    for layer, layer_weight in zip(layers, LAYER_WEIGHTS, strict=True):
        kept = layer.weight.abs() > torch.sigmoid(layer.threshold)
        for a, b in itertools.product(range(3), range(3)):
            expected += layer_weight * ((kept[a] != kept[b]) * layer.weight.abs()).sum().item()
    expected /= 3 * 2 * sum(layer.weight.numel() for layer in layers)
    assert expected > 0
    assert mask_distance(layers, LAYER_WEIGHTS).item() == pytest.approx(expected)


def test_mask_distance_moves_thresholds_alone_through_a_squashed_step():
    layer = half_kept(n_masks=2)
    (1000 * mask_distance([layer], [1.0])).backward()
    assert layer.weight.grad is None
    size, t = layer.weight.detach().abs(), torch.sigmoid(layer.threshold.detach())
    kept = (size > t).double()
    by_magnitude = 2 * 1000 / (2 * layer.weight.numel()) * (kept * size).diff(dim=0).sign()  # of mask 1 minus mask 0
    by_kept = torch.cat([-by_magnitude, by_magnitude]) * size
    torch.testing.assert_close(layer.threshold.grad, -torch.tanh(by_kept) * t * (1 - t))


def test_a_single_mask_has_nothing_to_be_far_from():
    distance = mask_distance([half_kept(n_masks=1)], [1.0])
    assert distance.item() == 0
    distance.backward()


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_reset_starts_anew_what_every_mask_drops_and_nothing_else(ratio):
    layer = half_kept(in_features=64, out_features=64, n_masks=2)
    weight, threshold = layer.weight.detach().clone(), layer.threshold.detach().clone()
    dropped = layer.dropped_by_all()
    assert 0.1 < dropped.float().mean() < 0.4
    count = layer.reset(ratio, torch.Generator().manual_seed(0))
    changed = layer.weight != weight
    assert count == changed.sum() and not changed[~dropped].any()
    assert (layer.threshold != threshold).any(dim=0).equal(changed)
    assert changed.sum() / dropped.sum() == pytest.approx(ratio, abs=0.05)
    fresh = layer.threshold[:, changed]
    assert ((fresh >= -10) & (fresh <= -5)).all() and (layer.weight[changed].abs() <= 1 / 8).all()


def test_what_a_reset_starts_anew_is_as_in_a_new_layer():
    layer = half_kept(in_features=16, out_features=100, n_masks=2)
    dropped = layer.dropped_by_all()
    layer.reset(1.0, torch.Generator().manual_seed(0))
    assert dropped.sum() > 200
    for fresh, low, high in ((layer.weight[dropped], -0.25, 0.25), (layer.threshold[:, dropped].flatten(), -10, -5)):
        assert low <= fresh.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < fresh.max() <= high
        assert fresh.mean().item() == pytest.approx((low + high) / 2, abs=0.1 * (high - low))


def test_learner_resets_all_layers_but_the_first_and_logs_what_is_dropped(tiny_config, tiny_spec, random_episodes):
    config = tiny_config(method="kaleidoscope", reset_interval=100, reset_ratio=1.0, t_max=10_000, lr=1e-9)
    learner = build_learner(config, tiny_spec)
    layers = learner.scheme.layers
    assert list(layers) == ["fc1", "fc2", "fc3", "fc4"]
    with torch.no_grad():
        for layer in layers.values():
            layer.threshold[:, 0] = 5.0  # every mask drops the first row
    metrics = learner.update(random_episodes(), t_env=50, log=True)
    assert metrics["n_resets"] == 0 and metrics["div_loss"] < 0 < metrics["div_coef"]
    assert all(metrics[f"sparsity_layer_{name}"] >= 1 / len(layer.weight) for name, layer in layers.items())
    assert learner.update(random_episodes(), t_env=150, log=True)["n_resets"] == 0  # what was before the step
    dropped = {name: layer.dropped_by_all()[0].all().item() for name, layer in layers.items()}
    assert dropped == {"fc1": True, "fc2": False, "fc3": False, "fc4": False} and learner.scheme.n_resets == 1


@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 10**6))
def test_magnitude_mask_keeps_the_two_largest_of_each_four(in_features, out_features, seed):
    torch.manual_seed(seed)
    layer = MagnitudeLinear24(in_features, out_features)
    mask, size = layer.mask(), layer.weight.detach().abs()
    for row in range(out_features):
        for start in range(0, in_features, 4):
            group, kept = size[row, start : start + 4], mask[row, start : start + 4]
            assert kept.sum() == min(2, len(group))
            assert set(group[kept > 0].tolist()) == set(group.topk(min(2, len(group))).values.tolist())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_magnitude_mask_is_2_4_where_all_weights_are_alike(value):
    layer = MagnitudeLinear24(8, 3)
    torch.nn.init.constant_(layer.weight, value)
    assert (layer.mask().unflatten(-1, (2, 4)).sum(-1) == 2).all()


def test_gradient_passes_the_magnitude_mask_and_dropped_weights_decay():
    layer = MagnitudeLinear24(8, 3).double()
    weight, bias = layer.effective()
    assert weight.shape == (1, 3, 8) and bias.shape == (1, 3)
    assert weight[0].equal(layer.weight * layer.mask())
    upstream = torch.randn_like(weight)
    (weight * upstream).sum().backward()
    decay = MagnitudeLinear24.DECAY * layer.weight.detach() * (1 - layer.mask())
    torch.testing.assert_close(layer.weight.grad, upstream[0] + decay)


def test_kaleidoscope_keeps_its_own_settings_and_refuses_what_it_has_not():
    config = build_config({"method": "kaleidoscope"})
    assert config.diversity_coef_max is None and config.diversity_coef == 0.5 and not config.mask_rnn
    with pytest.raises(ConfigError, match="mask_rnn = True is not part of method = 'kaleidoscope'"):
        build_config({"method": "kaleidoscope", "mask_rnn": True})
    with pytest.raises(ConfigError, match=r"diversity_coef_max = 0\.0 must be above 0 or None"):
        build_config({"diversity_coef_max": 0.0})
