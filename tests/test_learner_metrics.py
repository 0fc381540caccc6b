"""What a learner logs: all metrics, each with the value of its definition."""

import math

import pytest
import torch

from k24lab.core.masks import draw_masks
from k24lab.marl.agent import unroll
from k24lab.methods import METHODS, get_method

LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
VALUE_METRICS = {"loss_td", "loss", "grad_norm", "q_taken_mean", "target_mean", "td_error_abs", "dead_units"}
MASK_METRICS = {
    "temperature",
    "pattern_mean_similarity",
    "pattern_max_similarity",
    "pattern_min_similarity",
    "pattern_entropy",
    "mask_flip_rate",
    "train_eval_gap",
    *(f"sparsity_layer_{name}" for name in LAYERS),
    *(f"pattern_{p}_prob" for p in range(6)),
}


@pytest.mark.parametrize("method", METHODS)
def test_all_metrics_of_the_specification_are_logged(method, make_learner, random_episodes):
    thresholds = "threshold_scale" in get_method(method).mask_settings
    learner = make_learner(method=method, mask_rnn=get_method(method).masks_rnn)
    first = learner.update(random_episodes(), t_env=200, log=True)
    metrics = learner.update(random_episodes(), t_env=400, log=True)
    expected = VALUE_METRICS | (MASK_METRICS if learner.masked_layers else set())
    expected |= {"div_loss", "div_coef"} if get_method(learner.config.method).learns_masks else set()
    assert expected <= metrics.keys()
    others = {"n_resets", *(f"sparsity_layer_fc{k}" for k in range(1, 5))} if thresholds else set()
    assert learner.masked_layers or MASK_METRICS & metrics.keys() == others & MASK_METRICS
    assert first.keys() == metrics.keys() - {"mask_flip_rate"}  # nothing to compare with at first


def test_logging_changes_nothing_that_is_learned(make_learner, random_episodes):
    a, b = make_learner(), make_learner()
    for t_env in (200, 400):
        quiet, loud = a.update(random_episodes(), t_env), b.update(random_episodes(), t_env, log=True)
        assert quiet.items() <= loud.items()
    for name, value in a.agent.state_dict().items():
        assert torch.equal(value, b.agent.state_dict()[name]), name


def test_mask_metrics_have_the_values_of_their_definitions(make_learner, random_episodes):
    learner = make_learner(noise="none", reset_trigger="off", alpha_lr_factor=1e-6, lr=1e-6, score_ema_power=0.0)
    for _ in range(2):  # nothing moves
        metrics = learner.update(random_episodes(), t_env=1600, log=True)
    assert metrics["temperature"] == pytest.approx(learner.config.temperature_min)
    assert metrics["mask_flip_rate"] == 0
    assert metrics["train_eval_gap"] == 0  # the sampled mask is the argmax mask
    assert sum(metrics[f"pattern_{p}_prob"] for p in range(6)) == pytest.approx(1)
    probs = learner.scheme.argmax_draw(1600).pattern_probs.clamp_min(1e-30).double()
    entropy = -(probs * probs.log()).sum(dim=0).mean().item()
    assert metrics["pattern_entropy"] == pytest.approx(entropy, rel=1e-3) and 0 < entropy < math.log(6)
    low, mean, high = (metrics[f"pattern_{k}_similarity"] for k in ("min", "mean", "max"))
    assert 0 <= low <= mean <= high <= 1
    assert all(metrics[f"sparsity_layer_{name}"] == 0.5 for name in LAYERS[1:])
    assert metrics["sparsity_layer_fc1"] == pytest.approx(0.5, abs=0.17)  # six inputs: the last group is cut
    assert metrics["loss"] == pytest.approx(metrics["loss_td"] + metrics["div_coef"] * metrics["div_loss"])


@pytest.mark.parametrize("method", ["fups", "k24", "nops", "multih"])
def test_dead_units_are_those_that_no_step_of_the_batch_makes_positive(method, make_learner, random_episodes):
    learner = make_learner(method=method)
    layers = learner.agent.layers
    with torch.no_grad():
        for name, bias in (("fc1", 1e4), ("fc2", -1e6), ("fc3", 1.0)):  # fc3 sees zeros only
            layers[name].bias.fill_(bias)
        layers["fc1"].bias[..., 0] = -1e6
    hidden = learner.config.hidden_dim
    metrics = learner.update(random_episodes(), t_env=200, log=True)
    assert metrics["dead_units"] == pytest.approx((1 + hidden) / (3 * hidden))


def test_flip_rate_is_the_share_of_groups_whose_argmax_changed(make_learner, random_episodes):
    learner = make_learner()
    learner.update(random_episodes(), t_env=200, log=True)
    before = learner.scheme.logged_index.clone()
    with torch.no_grad():
        for alpha in learner.scheme.alphas:
            alpha.normal_(std=3.0)
    metrics = learner.update(random_episodes(), t_env=400, log=True)
    assert metrics["mask_flip_rate"] == pytest.approx((learner.scheme.logged_index != before).float().mean().item())
    assert metrics["mask_flip_rate"] > 0.3


def test_train_eval_gap_is_the_share_of_greedy_actions_that_the_drawn_mask_changes(make_learner, random_episodes):
    learner, episodes = make_learner(method="k24-literal"), random_episodes()
    episodes.alive[:, 2:, 1] = episodes.alive[:, 1:, 2] = False
    layers = learner.masked_layers
    generator = torch.Generator().set_state(learner.generator.get_state())
    draw = draw_masks(list(layers.values()), learner.scheme.temperature(200), 1.0, "literal", generator)
    x, hidden = episodes.obs.permute(2, 3, 1, 0).contiguous(), torch.zeros(3, 16, 5)
    best = [
        unroll(weights, x, hidden)
        .q_values.permute(0, 2, 3, 1)
        .masked_fill(~episodes.avail_actions.permute(2, 1, 0, 3), -torch.inf)
        for weights in (learner.agent.weights(dict(zip(layers, draw.masks, strict=True))), learner.argmax_weights())
    ]
    drawn, argmax = (q.argmax(dim=-1) for q in best)
    played = (episodes.filled.unsqueeze(-1) & episodes.alive[:, :-1]).nonzero().tolist()
    differ = [drawn[n, t, b] != argmax[n, t, b] for b, t, n in played]
    gap = learner.update(episodes, t_env=200, log=True)["train_eval_gap"]
    assert gap == pytest.approx(sum(differ).item() / len(differ))
    assert gap > 0.1  # these masks are chance


@pytest.mark.parametrize("method", ["k24", "k24-literal"])
def test_the_logged_shares_of_the_coefficients_gradient_are_those_of_each_loss(method, make_learner, random_episodes):
    both, td_alone = (make_learner(torch.float64, method=method, diversity_coef=coef) for coef in (1.0, 0.0))
    metrics = both.update(random_episodes(dtype=torch.float64), t_env=200, log=True)
    assert td_alone.update(random_episodes(dtype=torch.float64), t_env=200, log=True)["alpha_grad_div"] == 0
    pairs = [
        (layer.hetero_alpha.grad, other.hetero_alpha.grad)
        for layer, other in zip(both.masked_layers.values(), td_alone.masked_layers.values(), strict=True)
    ]
    td = sum(t.square().sum() for _, t in pairs).sqrt().item()
    diversity = sum((a - t).square().sum() for a, t in pairs).sqrt().item()
    assert metrics["alpha_grad_td"] == pytest.approx(td) and metrics["alpha_grad_div"] == pytest.approx(diversity)
    assert min(td, diversity) > 0 and td != pytest.approx(diversity)
