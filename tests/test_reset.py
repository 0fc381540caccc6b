import copy
import math

import pytest
import torch

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.reset import ResetTrigger, kl_divergence, mean_policy, revival_candidates, revive
from k24lab.marl.learner import K24QLearner


@pytest.fixture
def layer_and_optimizer():
    """A layer with a mixed history of selection, and an optimizer with moments everywhere."""
    layer = SemiStructuredLinear24(40, 40, 3, config=MaskConfig(hetero_init_scale=2.0))
    layer.selection_frequency.copy_(torch.rand(3, 40, 40))
    optimizer = torch.optim.Adam([layer.weight, layer.hetero_alpha], lr=0.1)
    for _ in range(2):
        layer.weight.grad, layer.hetero_alpha.grad = torch.rand(40, 40) + 1, torch.rand(3, 40, 40) + 1
        optimizer.step()
    return layer, optimizer


def test_unselected_entries_are_those_below_the_threshold():
    layer = SemiStructuredLinear24(4, 1, 1)
    layer.selection_frequency.copy_(torch.tensor([[[0.0, 0.049, 0.05, 1.0]]]))
    assert revival_candidates(layer, "unselected", 0.05).tolist() == [[[True, True, False, False]]]
    assert revival_candidates(layer, "random", 0.05).all()


@pytest.mark.parametrize("target", ["unselected", "random"])
def test_only_candidates_are_revived_at_about_the_ratio_and_only_their_moments_cleared(target, layer_and_optimizer):
    layer, optimizer = layer_and_optimizer
    alpha, weight = layer.hetero_alpha, layer.weight
    before, frequency = alpha.detach().clone(), layer.selection_frequency.clone()
    state = {p: copy.deepcopy(optimizer.state[p]) for p in (alpha, weight)}
    weight_before = weight.detach().clone()
    candidates = revival_candidates(layer, target, 0.3)
    n = revive(layer, candidates, 0.25, optimizer, torch.Generator().manual_seed(0))

    changed = alpha != before
    assert n == changed.sum()
    assert not (changed & ~candidates).any()
    share = n / candidates.sum()
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / candidates.sum()))
    for key in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[alpha][key]
        assert (moment[changed] == 0).all()
        assert torch.equal(moment[~changed], state[alpha][key][~changed])
        assert torch.equal(optimizer.state[weight][key], state[weight][key])
    assert torch.equal(optimizer.state[alpha]["step"], state[alpha]["step"])
    assert torch.equal(weight, weight_before)
    assert (layer.selection_frequency[changed] == 0.5).all()
    assert torch.equal(layer.selection_frequency[~changed], frequency[~changed])
    assert alpha[changed].std().item() == pytest.approx(2.0, rel=0.15)  # fresh: N(0, hetero_init_scale)


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (1.0, 4800)])
def test_ratio_zero_revives_none_and_one_all(ratio, expected, layer_and_optimizer):
    layer, optimizer = layer_and_optimizer
    assert revive(layer, torch.ones(3, 40, 40, dtype=torch.bool), ratio, optimizer) == expected


def test_entries_without_moments_can_be_revived():
    layer = SemiStructuredLinear24(8, 8, 2)
    optimizer = torch.optim.Adam([layer.hetero_alpha])
    assert revive(layer, revival_candidates(layer, "random", 0.0), 1.0, optimizer) == 128


# --- when ------------------------------------------------------------------------------------------------------


def reset_times(trigger, step=100):
    return [t for t in range(0, trigger.t_max + 1, step) if trigger.due(t)]


def test_periodic_resets_come_at_the_interval_and_never_within_one_of_the_end():
    assert reset_times(ResetTrigger("periodic", 300, 1600, 0.1)) == [300, 600, 900, 1200]
    assert reset_times(ResetTrigger("periodic", 400, 1600, 0.1)) == [400, 800]
    assert reset_times(ResetTrigger("periodic", 900, 1600, 0.1)) == []


def test_periodic_reset_that_comes_late_starts_the_next_interval():
    trigger = ResetTrigger("periodic", 300, 10_000, 0.1)
    assert [t for t in (0, 250, 450, 700, 760) if trigger.due(t)] == [450, 760]
    assert trigger.last_reset_t == 760


def test_trigger_that_is_off_never_fires():
    assert reset_times(ResetTrigger("off", 100, 1600, 0.1)) == []


def test_kl_divergence_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    assert kl_divergence(p, q) == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))
    assert kl_divergence(p, p) == 0
    assert kl_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])) == pytest.approx(math.log(2))
    assert 10 < kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])) < math.inf


def test_adaptive_reset_needs_a_moved_policy_and_a_gap_of_1000_steps():
    a, b = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9])  # KL 0.51 and 0.37
    trigger = ResetTrigger("adaptive", 1, 100_000, 0.1)
    seen = [(500, b), (900, a), (1100, a), (1200, b), (1900, a), (2199, b), (2200, a), (2300, a), (9000, a)]
    assert [t for t, policy in seen if trigger.due(t, policy)] == [1200, 2200]
    assert trigger.last_reset_t == 2200


def test_adaptive_reset_compares_successive_checks_with_the_threshold():
    a, b = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.9])
    moved = kl_divergence(b, a)
    for threshold, expected in ((moved * 0.99, True), (moved * 1.01, False)):
        trigger = ResetTrigger("adaptive", 1, 100_000, threshold)
        assert not trigger.due(2000, a)  # nothing to compare with yet
        assert trigger.due(2100, b) == expected


def test_a_policy_that_stays_as_it_is_has_not_moved_at_any_threshold():
    trigger, policy = ResetTrigger("adaptive", 1, 100_000, 0.0), torch.tensor([0.5, 0.5])
    assert not trigger.due(2000, policy) and not trigger.due(4000, policy)


def test_trigger_goes_on_where_it_was_saved():
    trigger, other = (ResetTrigger("adaptive", 1, 100_000, 0.1) for _ in range(2))
    trigger.due(1500, torch.tensor([0.5, 0.5]))
    other.load_state_dict(trigger.state_dict())
    assert other.due(1600, torch.tensor([0.1, 0.9]))


def test_mean_policy_is_softmax_over_available_actions_of_the_filled_steps():
    q = torch.randn(2, 3, 4, 5, dtype=torch.float64)  # agents, time, batch, actions
    avail = torch.rand(2, 3, 4, 5) < 0.6
    avail[..., 0] = True
    filled = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    rows = []
    for n in range(2):
        for t, b in filled.nonzero().tolist():
            z = torch.where(avail[n, t, b], q[n, t, b].exp(), 0.0)
            rows.append(z / z.sum())
    torch.testing.assert_close(mean_policy(q, avail, filled), torch.stack(rows).mean(dim=0))


def test_padded_steps_without_any_available_action_do_not_spoil_the_mean_policy():
    q, avail = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2, dtype=torch.bool)
    avail[0, 1] = False
    policy = mean_policy(q, avail, torch.tensor([[True], [False]]))
    torch.testing.assert_close(policy, torch.tensor([0.5, 0.5]))


def test_a_batch_in_which_nobody_lives_has_a_policy_of_zeros_not_of_nan():
    q, avail = torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1, 2, dtype=torch.bool)
    assert mean_policy(q, avail, torch.zeros(2, 1, dtype=torch.bool)).tolist() == [0, 0]


# --- through the learner ---------------------------------------------------------------------------------------


def make_learner(tiny_config, tiny_spec, **changes):
    return K24QLearner(tiny_config(reset_ratio=1.0, lr=1e-9, grad_norm_clip=1e-9, **changes), tiny_spec)


@pytest.mark.parametrize(("target", "threshold", "all_of_them"), [("random", 0.0, True), ("unselected", 0.0, False)])
def test_learner_resets_all_layers_but_the_first(
    target, threshold, all_of_them, tiny_config, tiny_spec, random_episodes
):
    settings = {"reset_target": target, "reset_threshold": threshold, "reset_ema_share": 0.75, "noise": "none"}
    learner = make_learner(tiny_config, tiny_spec, **settings)
    alphas = {name: layer.hetero_alpha.detach().clone() for name, layer in learner.masked_layers.items()}
    learner.update(random_episodes(), t_env=399)
    assert learner.scheme.n_resets == 0
    emas = {name: layer.ema_tracker.ema_activation.clone() for name, layer in learner.masked_layers.items()}
    learner.update(random_episodes(), t_env=400)
    assert learner.scheme.n_resets == 1 and learner.scheme.reset_trigger.last_reset_t == 400
    for name, layer in learner.masked_layers.items():
        moved = (layer.hetero_alpha - alphas[name]).abs() > 1e-3
        assert bool(moved.any()) == (all_of_them and name != "fc1"), name
        if all_of_them and name != "fc1":
            assert moved.float().mean() > 0.95
            assert not learner.optimizer.state[layer.hetero_alpha]["exp_avg"].any()
        # The same batch under the same masks leaves the running mean alone: only the reset has moved it.
        ema, mean = emas[name], emas[name].mean(dim=1, keepdim=True)
        expected = ema if name == "fc1" else 0.25 * ema + 0.75 * mean
        torch.testing.assert_close(layer.ema_tracker.ema_activation, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(ema, mean, atol=0.01), name


def test_learner_revives_only_what_was_selected_less_often_than_the_threshold(tiny_config, tiny_spec, random_episodes):
    learner = make_learner(tiny_config, tiny_spec, reset_threshold=0.5, noise="none")
    alphas = {name: layer.hetero_alpha.detach().clone() for name, layer in learner.masked_layers.items()}
    learner.update(random_episodes(), t_env=400)
    for name, layer in list(learner.masked_layers.items())[1:]:
        moved = (layer.hetero_alpha - alphas[name]).abs() > 1e-3
        selected = layer.selection_frequency > 0.5  # the revived are at 0.5 again
        assert moved.any() and not (moved & selected).any(), name


@pytest.mark.parametrize(("method", "trigger"), [("random24", "periodic"), ("k24", "off"), ("fups", "periodic")])
def test_fixed_masks_and_a_trigger_that_is_off_are_never_reset(
    method, trigger, tiny_config, tiny_spec, random_episodes
):
    learner = make_learner(tiny_config, tiny_spec, method=method, reset_trigger=trigger, reset_target="random")
    for t_env in range(0, 1600, 400):
        learner.update(random_episodes(), t_env)
    assert learner.scheme.n_resets == 0


@pytest.mark.parametrize(("after_anneal", "expected"), [("argmax", 0), ("frozen", 0), ("drawn", 1)])
def test_settled_masks_are_never_reset(after_anneal, expected, tiny_config, tiny_spec, random_episodes):
    config = tiny_config(t_max=1000, reset_interval=50, after_anneal=after_anneal)
    learner = K24QLearner(config, tiny_spec)
    learner.update(random_episodes(), t_env=900)  # after anneal_end
    assert learner.scheme.n_resets == expected


def test_adaptive_reset_works_with_episodes_that_end_early(tiny_config, tiny_spec, random_episodes):
    learner = K24QLearner(tiny_config(reset_trigger="adaptive", kl_threshold=0.0), tiny_spec)
    episodes = random_episodes()
    padding = torch.cat([~episodes.filled, ~episodes.filled[:, -1:]], dim=1)
    episodes.avail_actions[padding] = False  # as a replay buffer holds them
    learner.update(episodes, t_env=1000)
    learner.update(episodes, t_env=1200)
    assert learner.scheme.reset_trigger.previous_policy.isfinite().all()
    assert learner.scheme.n_resets == 1
