"""What a user of masked layers calls on any module: `k24lab.core.modules`."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from k24lab.core.config import MaskConfig
from k24lab.core.convert import convert
from k24lab.core.diversity import PatternOrthogonalityLoss
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks, draw_masks
from k24lab.core.modules import anneal, diversity_loss, drawn_masks, freeze_masks, masked_layers, weights_kept
from k24lab.errors import InputError, K24Error

M = 3


def make_network(n_masks=M, **config) -> nn.Sequential:
    def layer(i, o):
        return SemiStructuredLinear24(i, o, n_masks, config=MaskConfig(**config))

    return nn.Sequential(layer(8, 12), nn.ReLU(), nn.Sequential(layer(12, 6), nn.ReLU()), layer(6, 5))


def test_layers_are_found_by_their_qualified_names():
    network = make_network()
    assert list(masked_layers(network)) == ["0", "2.0", "3"]
    assert masked_layers(network)["2.0"] is network[2][0]
    assert list(masked_layers(network[0])) == [""]
    assert masked_layers(nn.Linear(3, 2)) == {}


@pytest.mark.parametrize("function", [anneal, diversity_loss, weights_kept, freeze_masks, drawn_masks])
def test_a_module_without_masked_layers_is_an_error_that_names_convert(function):
    arguments = (0.5,) if function is anneal else ()
    with pytest.raises(ValueError, match=r"Linear has no SemiStructuredLinear24 layer; k24lab\.convert"):
        result = function(nn.Linear(3, 2), *arguments)
        with result:
            pass


# --- annealing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "temperature", "noise"),
    [(0.0, 5.0, "annealed"), (0.4, 1.0, "annealed"), (0.6, 0.55, "annealed"), (0.8, 0.1, "none"), (1.0, 0.1, "none")],
)
def test_annealing_sets_temperature_and_noise_of_every_layer(progress, temperature, noise):
    network = make_network()
    anneal(network, progress)
    for layer in masked_layers(network).values():
        assert layer.temperature == pytest.approx(temperature) and layer.noise == noise
        assert layer.logit_scale == 10.0 and layer.learns_masks


def test_each_layer_follows_its_own_configuration():
    config = MaskConfig(temperature_schedule="linear", temperature_init=2.0, logit_scale_final=30.0, noise="literal")
    network = nn.Sequential(SemiStructuredLinear24(8, 4, M, config=config), SemiStructuredLinear24(4, 4, M))
    anneal(network, 0.4)
    assert network[0].temperature == pytest.approx(1.05) and network[1].temperature == pytest.approx(1.0)
    assert network[0].logit_scale == pytest.approx(18.0) and network[1].logit_scale == 10.0
    assert network[0].noise == "literal" and network[1].noise == "annealed"


def test_the_draw_uses_what_annealing_set():
    layer = SemiStructuredLinear24(8, 12, M, config=MaskConfig(logit_scale_final=40.0))
    anneal(layer, 0.5)
    torch.manual_seed(5)
    expected = draw_masks([layer], layer.temperature, 25.0, "annealed").masks[0]
    torch.manual_seed(5)
    assert torch.equal(layer.mask(), expected)
    assert layer.temperature == pytest.approx(0.775)


@pytest.mark.parametrize("after", ["argmax", "frozen", "drawn"])
def test_after_the_annealing_training_uses_the_masks_that_the_configuration_names(after):
    layer = SemiStructuredLinear24(32, 32, M, config=MaskConfig(after_anneal=after))
    anneal(layer, 0.79)
    assert not torch.equal(layer.mask(), layer.argmax_mask()) and layer.learns_masks
    anneal(layer, 0.8)
    best, x = layer.argmax_mask(), torch.randn(M, 5, 32)
    assert torch.equal(layer.mask(), best) == (after != "drawn")
    layer(x).square().sum().backward()
    assert (layer.hetero_alpha.grad is None) == (after == "frozen")
    with torch.no_grad():
        layer.weight.normal_()
    assert torch.equal(layer.argmax_mask(), best) == (after == "frozen")


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan, math.inf])
def test_progress_outside_of_training_is_an_error(progress):
    with pytest.raises(InputError, match=r"progress = .* must be in \[0, 1\]"):
        anneal(make_network(), progress)
    assert issubclass(InputError, ValueError) and issubclass(InputError, K24Error)


# --- one draw for many passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_all_passes_of_a_block_use_one_draw_of_all_layers(training):
    network, x = make_network().train(training), torch.randn(M, 4, 8)
    layers = list(masked_layers(network).values())
    expected = draw_masks(layers, 5.0, 10.0, "annealed", torch.Generator().manual_seed(7))
    with drawn_masks(network, torch.Generator().manual_seed(7)) as draw:
        for mask, other, layer in zip(draw.masks, expected.masks, layers, strict=True):
            assert torch.equal(mask, other) and layer.mask() is mask
            assert not torch.equal(mask, layer.argmax_mask())
        assert torch.equal(network(x), network(x))
        y = network(x)
    by_hand = x
    for k, (mask, layer) in enumerate(zip(draw.masks, layers, strict=True)):
        by_hand = torch.einsum("moi,mbi->mbo", layer.weight * mask, by_hand.relu() if k else by_hand) + layer.bias
    torch.testing.assert_close(y, by_hand)
    assert all(layer.shared_draw is None for layer in layers)
    assert torch.equal(network(x), network(x)) != training


def test_one_backward_pass_reaches_everything_through_several_forward_passes():
    network, x = make_network(), torch.randn(M, 4, 8)
    with drawn_masks(network):
        loss = sum(network(x + k).square().mean() for k in range(3)) + diversity_loss(network)
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_running_means_move_once_a_block_by_all_that_it_saw():
    layer = SemiStructuredLinear24(8, 4, M, config=MaskConfig(ema_decay=0.75))
    first, second, third = torch.randn(M, 5, 8), torch.randn(M, 3, 8), torch.randn(M, 6, 8)
    with drawn_masks(layer):
        layer(first)
        assert (layer.ema_tracker.ema_activation == 1).all()
        layer(second)
    expected = torch.cat([first, second], dim=1).abs().mean(dim=1)
    torch.testing.assert_close(layer.ema_tracker.ema_activation, expected)
    with drawn_masks(layer):
        layer(third)
        layer.eval()(first)
    torch.testing.assert_close(layer.ema_tracker.ema_activation, 0.75 * expected + 0.25 * third.abs().mean(dim=1))
    before = layer.ema_tracker.ema_activation.clone()
    with drawn_masks(layer):  # in evaluation mode
        layer(first)
    assert torch.equal(layer.ema_tracker.ema_activation, before)


@pytest.mark.parametrize("scope", ["mask", "shared"])
def test_a_mask_without_inputs_leaves_the_running_means_of_a_block_finite(scope):
    layer, x = SemiStructuredLinear24(8, 4, M, config=MaskConfig(ema_scope=scope)), torch.randn(1, 8)
    with drawn_masks(layer):
        layer(x, torch.tensor([1]))
    expected = x.abs() if scope == "shared" else torch.ones(M, 8).index_copy(0, torch.tensor([1]), x.abs())
    torch.testing.assert_close(layer.ema_tracker.ema_activation, expected)


def test_a_draw_counts_once_as_a_selection_and_only_in_training():
    layer, x = SemiStructuredLinear24(8, 4, M), torch.randn(M, 5, 8)
    with drawn_masks(layer) as draw:
        layer(x), layer(x)
    torch.testing.assert_close(layer.selection_frequency, 0.99 * 0.5 + 0.01 * draw.masks[0].detach())
    before = layer.selection_frequency.clone()
    with drawn_masks(layer.eval()):
        layer(x)
    assert torch.equal(layer.selection_frequency, before)


def test_blocks_can_be_nested_and_end_with_an_error():
    network = make_network()
    with drawn_masks(network) as outer:
        with pytest.raises(ZeroDivisionError), drawn_masks(network[0]) as inner:
            assert network[0].mask() is inner.masks[0]
            network[0](torch.randn(M, 4, 8))
            raise ZeroDivisionError
        assert network[0].mask() is outer.masks[0]
    assert network[0].shared_draw is None and (network[0].ema_tracker.ema_activation == 1).all()


def test_layers_that_are_drawn_differently_still_share_a_block():
    network, generator = make_network(), torch.Generator().manual_seed(3)
    freeze_masks(network[2])
    network[0].temperature = 0.5
    with drawn_masks(network, generator) as draw:
        diversity = diversity_loss(network)
        assert torch.equal(draw.masks[1], network[2][0].argmax_mask()) and not draw.masks[1].requires_grad
        assert draw.masks[0].requires_grad and draw.masks[2].requires_grad
    generator.manual_seed(3)
    assert torch.equal(draw.masks[0], draw_masks([network[0]], 0.5, 10.0, "annealed", generator).masks[0])
    groups = [12 * 2, 6 * 3, 5 * 2]
    assert draw.pattern_probs.shape == (6, M, sum(groups)) and draw.pattern_index.shape == (M, sum(groups))
    own = draw_masks([network[2][0]], 5.0, 10.0, "none")
    torch.testing.assert_close(draw.pattern_probs.split(groups, dim=2)[1], own.pattern_probs)
    assert torch.equal(draw.pattern_index.split(groups, dim=1)[1], own.pattern_index)
    torch.testing.assert_close(diversity, PatternOrthogonalityLoss()(draw.pattern_probs))


def test_two_kinds_of_layers_are_two_draws():
    network = nn.Sequential(SemiStructuredLinear24(8, 12, M), SemiStructuredLinear24(12, 4, M))
    freeze_masks(network[1])
    with drawn_masks(network) as draw:
        assert torch.equal(draw.masks[1], network[1].argmax_mask())
        assert not torch.equal(draw.masks[0], network[0].argmax_mask())


def test_different_numbers_of_masks_are_an_error_that_says_what_to_do():
    network = nn.Sequential(SemiStructuredLinear24(8, 4, 2), SemiStructuredLinear24(4, 4, 3))
    with (
        pytest.raises(InputError, match=r"numbers of masks \(2, 3\): use drawn_masks for"),
        drawn_masks(network),
    ):
        pass
    with drawn_masks(network[0]), drawn_masks(network[1]):
        assert diversity_loss(network) > 0


def test_copies_and_pickles_within_a_block_leave_its_draw_out():
    network, x = make_network().eval(), torch.randn(M, 4, 8)
    expected = network(x)
    with drawn_masks(network):
        network(x)
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), expected)
        assert network[0].shared_draw is not None


# --- diversity, counts, freezing -------------------------------------------------------------------------------


def test_diversity_is_the_mean_orthogonality_over_all_groups_of_the_present_temperature():
    network = make_network()
    anneal(network, 0.5)
    loss = diversity_loss(network)
    draw = draw_masks(list(masked_layers(network).values()), network[0].temperature, 10.0, "none")
    expected = PatternOrthogonalityLoss()(draw.pattern_probs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    alphas = [layer.hetero_alpha for layer in masked_layers(network).values()]
    wanted = torch.autograd.grad(expected, alphas)
    for alpha, grad in zip(alphas, wanted, strict=True):
        torch.testing.assert_close(alpha.grad, grad)
    assert network[0].weight.grad is None or not network[0].weight.grad.any()


def test_inside_a_block_diversity_is_that_of_the_draw():
    network = make_network()
    with drawn_masks(network) as draw:
        anneal(network, 0.7)
        torch.testing.assert_close(diversity_loss(network), PatternOrthogonalityLoss()(draw.pattern_probs))
    assert diversity_loss(network) != PatternOrthogonalityLoss()(draw.pattern_probs)


def test_kept_weights_are_counted_with_padding():
    assert weights_kept(make_network()) == (12 * 4 + 6 * 6 + 5 * 4, 12 * 8 + 6 * 12 + 5 * 6)
    five = weights_kept(SemiStructuredLinear24(5, 2, M))
    assert five == (6, 10) and isinstance(five.kept, int) and five.share == pytest.approx(0.6)


def test_frozen_masks_stay_while_weights_learn():
    network, x = make_network(), torch.randn(M, 16, 8)
    layers = list(masked_layers(network).values())
    before = argmax_masks(layers)
    freeze_masks(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    for layer, mask in zip(layers, before, strict=True):
        assert torch.equal(layer.mask(), mask) and torch.equal(layer.argmax_mask(), mask)
        assert layer.hetero_alpha.grad is None and (layer.ema_tracker.ema_activation == 1).all()
    assert torch.equal(network(x), network.eval()(x))
    assert not diversity_loss(network).requires_grad


def test_masks_frozen_at_the_start_are_random_only_where_the_score_has_no_weights():
    shares = {}
    for power in (0.0, 1.0):
        config = MaskConfig(score_weight_power=power, score_ema_power=power)
        layer = convert(nn.Linear(64, 64), M, config=config)
        freeze_masks(layer)
        kept = layer.argmax_mask().bool()
        size = layer.weight.detach().abs().expand_as(kept)
        shares[power] = ((kept[0] != kept[1]).float().mean().item(), (size[kept].mean() / size[~kept].mean()).item())
    assert shares[0.0] == pytest.approx((0.5, 1.0), abs=0.05)
    assert shares[1.0][0] < 0.42 and shares[1.0][1] > 1.4


def test_frozen_masks_survive_saving_and_loading_into_a_new_network():
    network, other = make_network(), make_network()
    freeze_masks(network)
    other.load_state_dict(network.state_dict())
    x = torch.randn(M, 4, 8)
    assert torch.equal(other.eval()(x), network.eval()(x))
