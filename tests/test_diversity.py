import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from k24lab.core.diversity import (
    K24DiversityManager,
    PatternOrthogonalityLoss,
    pairwise_similarity,
    similarity_stats,
)
from k24lab.marl.learner import K24QLearner

loss = PatternOrthogonalityLoss()


def random_laws(n_masks, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(6, n_masks, groups, generator=generator, dtype=torch.float64), dim=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), st.integers(1, 7), st.integers(0, 100))
def test_closed_form_equals_the_double_loop_over_pairs(n_masks, groups, seed):
    probs = random_laws(n_masks, groups, seed)
    slow = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.permutations(range(n_masks), 2):
        for g in range(groups):
            slow += (probs[:, a, g] * probs[:, b, g]).sum()
    torch.testing.assert_close(loss(probs), slow / (n_masks * (n_masks - 1) * groups))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 5), st.integers(1, 5), st.integers(0, 100))
def test_similarity_statistics_are_those_of_all_pairs(n_masks, groups, seed):
    probs = random_laws(n_masks, groups, seed)
    pairs = [(probs[:, a] * probs[:, b]).sum(dim=0).mean().item() for a, b in itertools.combinations(range(n_masks), 2)]
    expected = {"mean": sum(pairs) / len(pairs), "max": max(pairs), "min": min(pairs)}
    assert similarity_stats(probs) == pytest.approx(expected)
    similarity = pairwise_similarity(probs)
    torch.testing.assert_close(similarity, similarity.T)
    torch.testing.assert_close(similarity.diagonal(), probs.square().sum(dim=0).mean(dim=1))


def test_uniform_laws_have_the_loss_one_sixth():
    torch.testing.assert_close(loss(torch.full((6, 4, 3), 1 / 6)), torch.tensor(1 / 6))


def test_disjoint_masks_have_the_loss_zero_and_equal_ones_one():
    disjoint = torch.zeros(6, 3, 5)
    for m in range(3):
        disjoint[m, m] = 1
    assert loss(disjoint) == 0
    equal = torch.zeros(6, 3, 5)
    equal[2] = 1
    assert loss(equal) == 1


def test_single_mask_has_the_loss_zero_and_a_gradient_of_zero():
    probs = random_laws(1, 4).requires_grad_()
    loss(probs).backward()
    assert loss(probs) == 0 and not probs.grad.any()
    assert similarity_stats(probs.detach()) == {"mean": 0.0, "max": 0.0, "min": 0.0}


# --- the adaptive coefficient ----------------------------------------------------------------------------------


def test_coefficient_is_the_ratio_of_the_mean_histories_times_the_base():
    manager = K24DiversityManager(base=0.5, cap=100.0)
    assert manager.coefficient(2.0, 0.1) == pytest.approx(0.5 * 2.0 / 0.1)
    assert manager.coefficient(4.0, 0.3) == pytest.approx(0.5 * 3.0 / 0.2)


def test_coefficient_is_never_negative():
    assert K24DiversityManager(base=1.0).coefficient(-1.0, 0.5) == pytest.approx(2.0)


def test_histories_forget_what_is_older_than_their_length():
    manager = K24DiversityManager(base=1.0, history=3, cap=1e9)
    for td in (1e6, 1.0, 2.0, 3.0):
        coefficient = manager.coefficient(td, 1.0)
    assert coefficient == pytest.approx(2.0)
    assert len(manager.td_history) == len(manager.div_history) == 3


def test_coefficient_is_capped():
    assert K24DiversityManager(base=1.0, cap=10.0).coefficient(1.0, 1e-9) == 10.0


@pytest.mark.parametrize(("td", "div"), [(0.0, 0.2), (0.3, 0.0), (float("nan"), 0.2), (0.3, float("inf")), (0.0, 0.0)])
def test_zero_and_non_finite_means_fall_back_to_the_base(td, div):
    assert K24DiversityManager(base=0.7).coefficient(td, div) == 0.7


def test_fallback_is_capped_too():
    assert K24DiversityManager(base=50.0, cap=10.0).coefficient(0.0, 0.2) == 10.0


def test_histories_survive_saving_and_loading():
    manager, other = K24DiversityManager(history=4), K24DiversityManager(history=4)
    for k in range(6):
        manager.coefficient(1.0 + k, 0.1 + k)
    other.coefficient(9.0, 9.0)
    other.load_state_dict(manager.state_dict())
    assert other.state_dict() == manager.state_dict()
    assert other.coefficient(3.0, 0.2) == manager.coefficient(3.0, 0.2)
    assert len(other.td_history) == 4


# --- where its gradient goes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "reaches_weights"), [("alpha", False), ("td", False), ("all", True)])
def test_diversity_moves_the_weights_only_with_the_switch(
    gradient, reaches_weights, tiny_config, tiny_spec, random_episodes, monkeypatch
):
    learner = K24QLearner(tiny_config(score_gradient=gradient), tiny_spec)
    monkeypatch.setattr(learner, "_mean_loss", lambda td_error, filled: (td_error * 0).sum())  # diversity alone
    metrics = learner.update(random_episodes(), t_env=0)
    assert metrics["div_coef"] > 0 and metrics["loss"] == pytest.approx(metrics["div_coef"] * metrics["div_loss"])
    for name, layer in learner.masked_layers.items():
        assert layer.hetero_alpha.grad.any(), name
        assert bool(layer.weight.grad.any()) == reaches_weights, name


def test_diversity_of_base_zero_is_off(tiny_config, tiny_spec, random_episodes, monkeypatch):
    learner = K24QLearner(tiny_config(diversity_coef=0), tiny_spec)
    monkeypatch.setattr(learner, "_mean_loss", lambda td_error, filled: (td_error * 0).sum())
    metrics = learner.update(random_episodes(), t_env=0)
    assert metrics["div_coef"] == 0 and metrics["div_loss"] > 0
    assert learner.scheme.regulariser(torch.tensor(0.3), 1.0)[0] == 0
    assert not any(layer.hetero_alpha.grad.any() for layer in learner.masked_layers.values())


def test_diversity_alone_separates_the_masks(tiny_config, tiny_spec, random_episodes, monkeypatch):
    learner = K24QLearner(tiny_config(hetero_init_scale=0.1, lr=0.01, reset_trigger="off"), tiny_spec)
    monkeypatch.setattr(learner, "_mean_loss", lambda td_error, filled: (td_error * 0).sum())
    losses = [learner.update(random_episodes(), t_env=0)["div_loss"] for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
