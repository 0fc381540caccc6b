"""after_anneal="frozen": from the end of the annealing on masks are as fixed as random ones."""

import copy

import pytest
import torch

from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks, pin_masks
from k24lab.marl.learner import K24QLearner


def masks_of(learner: K24QLearner) -> list[torch.Tensor]:
    return argmax_masks(list(learner.masked_layers.values()))


def train(learner: K24QLearner, random_episodes, first: int, last: int) -> dict[str, float]:
    for k in range(first, last):
        metrics = learner.update(random_episodes(seed=k), t_env=100 * k, log=True)
    return metrics


@pytest.mark.parametrize("method", ["k24", "k24-alpha"])
@pytest.mark.parametrize(("after_anneal", "fixed"), [("frozen", True), ("argmax", False)])
def test_masks_move_until_the_end_of_the_annealing_and_then_stand_still(
    after_anneal, fixed, method, tiny_config, tiny_spec, random_episodes
):
    settings = {"method": method, "after_anneal": after_anneal, "reset_trigger": "off", "lr": 0.02, "lr_final": 0.02}
    settings |= {"alpha_lr_factor": 20.0, "temperature_mid": 5.0, "temperature_min": 5.0}  # undecided to the end
    learner = K24QLearner(tiny_config(t_max=4000, **settings), tiny_spec)
    start = masks_of(learner)
    train(learner, random_episodes, 0, 32)
    settled = masks_of(learner)  # 32 * 100 is anneal_end: the next update freezes
    assert any(not torch.equal(a, b) for a, b in zip(start, settled, strict=True))
    weights = [layer.weight.detach().clone() for layer in learner.masked_layers.values()]
    metrics = train(learner, random_episodes, 32, 60)
    same = [torch.equal(a, b) for a, b in zip(settled, masks_of(learner), strict=True)]
    assert all(same) == fixed
    assert all(not torch.equal(w, x.weight) for w, x in zip(weights, learner.masked_layers.values(), strict=True))
    assert (metrics["mask_flip_rate"] == 0) == fixed and metrics["train_eval_gap"] == 0
    assert ("div_loss" in metrics) == (not fixed)


def test_one_clip_for_all_gradients_needs_none_of_the_coefficients(tiny_config, tiny_spec, random_episodes):
    config = tiny_config(after_anneal="frozen", grad_clip="all", grad_norm_clip=0.01)
    metrics = train(K24QLearner(config, tiny_spec), random_episodes, 12, 15)
    assert metrics["grad_norm"] > 0.01  # so gradients were clipped, with no gradient of coefficients among them


def test_dropped_weights_learn_nothing_once_masks_are_frozen(tiny_config, tiny_spec, random_episodes):
    learner = K24QLearner(tiny_config(after_anneal="frozen", reset_trigger="off"), tiny_spec)
    for layer in learner.masked_layers.values():
        layer.hetero_alpha.data[:] = layer.hetero_alpha.data[:1]  # one mask for all: it drops weights for everyone
    learner.update(random_episodes(), t_env=1500)
    for mask, layer in zip(masks_of(learner), learner.masked_layers.values(), strict=True):
        dropped = mask[0] == 0
        assert not layer.weight.grad[dropped].any() and layer.weight.grad[~dropped].any()
        assert layer.hetero_alpha.grad is None


def test_a_checkpoint_after_the_freeze_goes_on_bit_for_bit(tiny_config, tiny_spec, random_episodes):
    config = tiny_config(after_anneal="frozen")
    whole, resumed = K24QLearner(config, tiny_spec), K24QLearner(config, tiny_spec)
    train(whole, random_episodes, 10, 15)  # frozen from 12.8 on
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))  # tensors of the optimiser are not copied by loading
    expected, found = (train(learner, random_episodes, 15, 18) for learner in (whole, resumed))
    assert expected == found
    for name, value in whole.agent.state_dict().items():
        assert torch.equal(value, resumed.agent.state_dict()[name]), name


def test_pinned_masks_survive_any_weights_and_inputs():
    layers = [SemiStructuredLinear24(10, 6, 3), SemiStructuredLinear24(7, 5, 3)]
    layers[0].ema_tracker.ema_activation[:, :5] = 0  # inputs that never fired: scores of zero, which tie
    masks = argmax_masks(layers)
    pin_masks(layers)
    for _ in range(20):
        for layer in layers:
            layer.weight.data = torch.randn_like(layer.weight) * 10.0 ** torch.randint(-4, 3, layer.weight.shape)
        assert all(torch.equal(a, b) for a, b in zip(masks, argmax_masks(layers), strict=True))
