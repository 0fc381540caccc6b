"""The method of the original design document: masks drawn for the target network and for acting as well."""

import json
from pathlib import Path

import pytest
import torch

from k24lab.core.masks import draw_masks
from k24lab.errors import RunWarning
from k24lab.inference.freeze import freeze_run
from k24lab.lab import layer_experiments
from k24lab.lab.config import ADDED, build_config, stored_config
from k24lab.lab.train import train
from k24lab.marl.agent import unroll
from k24lab.marl.learner import K24QLearner
from k24lab.marl.policy import acting_policy, behaviour

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture
def make_learner(tiny_config, tiny_spec):
    def make(**changes) -> K24QLearner:
        torch.manual_seed(0)
        return K24QLearner(tiny_config(**{"method": "k24-literal", "reset_trigger": "off"} | changes), tiny_spec)

    return make


def expected_targets(learner, episodes, masks, t_env):
    """One-step targets of independent learners; masks of the target network drawn after the online network's."""
    generator = torch.Generator().set_state(learner.generator.get_state())
    noise = learner.config.noise
    q_values = []
    for agent in (learner.agent, learner.target_agent):
        layers = agent.masked_layers
        draw = draw_masks(list(layers.values()), learner.scheme.temperature(t_env), 10.0, noise, generator)
        weights = agent.weights(dict(zip(layers, draw.masks, strict=True)))
        if agent is learner.target_agent and masks == "argmax":
            weights = agent.argmax_weights()
        x = episodes.obs.permute(2, 3, 1, 0).contiguous()
        q_values.append(unroll(weights, x, agent.initial_hidden(3, len(episodes.obs))).q_values.permute(0, 2, 3, 1))
    online, target = q_values
    avail = episodes.avail_actions.permute(2, 1, 0, 3)
    best = online.masked_fill(~avail, -torch.inf).argmax(dim=-1, keepdim=True)
    value = target.gather(-1, best).squeeze(-1)[:, 1:]
    return episodes.reward.T + learner.config.gamma * value * ~episodes.terminated.T


@pytest.mark.parametrize("noise", ["literal", "annealed"])
@pytest.mark.parametrize("masks", ["drawn", "argmax"])
def test_the_target_network_uses_masks_of_its_own_draw_or_its_argmax_masks(masks, noise, make_learner, random_episodes):
    learner, episodes = make_learner(mixer="none", target_masks=masks, noise=noise), random_episodes()
    with torch.no_grad():
        for parameter in learner.target_agent.parameters():  # a target network unlike the online one
            parameter.add_(0.1 * torch.randn_like(parameter))
    targets = expected_targets(learner, episodes, masks, t_env=200)
    mean = targets[:, episodes.filled.T].mean().item()
    assert learner.update(episodes, t_env=200, log=True)["target_mean"] == pytest.approx(mean, abs=1e-5)


def test_acting_draws_new_masks_at_every_step_that_follow_from_its_seed(make_learner):
    learner = make_learner()
    before = learner.generator.get_state()
    x, hidden = torch.randn(3, 6, 50), torch.zeros(3, 16, 50)

    def steps(seed):
        act = acting_policy(learner, 200, seed)
        return [act(x, hidden)[0] for _ in range(3)]

    first, again, other = steps(1), steps(1), steps(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])
    assert torch.equal(learner.generator.get_state(), before)  # learning draws from numbers of its own


def test_acting_with_argmax_masks_does_not_depend_on_the_seed(make_learner):
    learner = make_learner(acting_masks="argmax")
    x, hidden = torch.randn(3, 6, 50), torch.zeros(3, 16, 50)
    act, other = (acting_policy(learner, 200, seed) for seed in (1, 2))
    assert torch.equal(act(x, hidden)[0], act(x, hidden)[0])
    assert torch.equal(act(x, hidden)[0], other(x, hidden)[0])


def test_the_stored_policy_is_the_one_that_acts(make_learner, random_episodes):
    stored = [
        behaviour(make_learner(acting_masks=masks), 200, random_episodes(), 2)["q_values"]
        for masks in ("drawn", "argmax", "drawn")
    ]
    assert (stored[0] == stored[2]).all() and (stored[0] != stored[1]).any()


def test_masks_that_are_settled_or_fixed_are_not_drawn(make_learner, random_episodes):
    for changes in (
        {"method": "random24"},
        {"method": "k24", "after_anneal": "frozen", "anneal_end": 0.5},
        {"method": "k24", "after_anneal": "argmax", "anneal_end": 0.5},
    ):
        drawn, argmax = (make_learner(**changes, target_masks=m, acting_masks=m) for m in ("drawn", "argmax"))
        metrics = [learner.update(random_episodes(), t_env=1200, log=True) for learner in (drawn, argmax)]
        assert metrics[0] == metrics[1], changes
        x, hidden = torch.randn(3, 6, 9), torch.zeros(3, 16, 9)
        q_values = [acting_policy(learner, 1200, 1)(x, hidden)[0] for learner in (drawn, argmax)]
        assert torch.equal(*q_values), changes


def test_the_temperature_reaches_its_minimum_where_the_document_has_it(make_learner):
    learner = make_learner(t_max=1000)
    # progress = t / (0.8 t_max), and linear in progress until 0.8
    for t_env in (0, 100, 400, 639):
        assert learner.scheme.temperature(t_env) == pytest.approx(5 - 4.9 * (t_env / 800) / 0.8)
    assert learner.scheme.temperature(640) == learner.scheme.temperature(1000) == pytest.approx(0.1)


def test_the_learning_rate_is_constant_and_that_of_the_coefficients_too(make_learner, random_episodes):
    learner = make_learner(lr=1e-3, t_max=1000)
    learner.update(random_episodes(), t_env=900)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("grad_clip", ["all", "groups"])
def test_gradients_are_clipped_by_one_norm_or_by_one_of_each_group(grad_clip, make_learner, random_episodes):
    free, clipped = (make_learner(method="k24", grad_clip=grad_clip, grad_norm_clip=c) for c in (1e9, 1e-4))
    reported = [learner.update(random_episodes(), t_env=200, log=True)["grad_norm"] for learner in (free, clipped)]
    norms = [
        [torch.nn.utils.get_total_norm(p.grad for p in group["params"]) for group in learner.optimizer.param_groups]
        for learner in (free, clipped)
    ]
    total = torch.stack(norms[0]).norm()
    assert min(norms[0]) > 1e-4  # both groups are clipped
    expected = [norm * 1e-4 / (total if grad_clip == "all" else norm) for norm in norms[0]]
    torch.testing.assert_close(norms[1], expected, rtol=1e-2, atol=0)
    assert reported[0] == reported[1] == pytest.approx((total if grad_clip == "all" else norms[0][0]).item())


def test_the_loss_is_the_squared_error_and_the_coefficient_of_diversity_has_no_cap(make_learner, random_episodes):
    learner = make_learner()
    assert learner.config.td_loss == "mse" and learner.config.diversity_coef_max is None
    metrics = learner.update(random_episodes(), t_env=200)
    assert metrics["div_coef"] == pytest.approx(0.1 * metrics["loss_td"] / metrics["div_loss"])


# --- runs that earlier versions have stored --------------------------------------------------------------------


def test_every_committed_run_keeps_its_name():
    """The name ends with the hash of the configuration: what a version adds must not change it."""
    lines = [
        json.loads(line) for path in FIGURES.glob("*/05_ablations_runs.jsonl") for line in path.read_text().splitlines()
    ]
    assert len(lines) > 800
    known = build_config({}).__dict__.keys()
    for line in lines:
        fields = {key: line.get(f"config_{key}", line.get(key)) for key in known if key in line}
        assert line["run"].endswith(stored_config(fields).hash()), line["run"]


def test_a_stored_literal_run_is_read_as_what_it_was():
    stored = {key: value for key, value in vars(build_config({"method": "k24-literal"})).items() if key not in ADDED}
    config = stored_config(stored)
    assert (config.target_masks, config.acting_masks, config.grad_clip) == ("argmax", "argmax", "groups")
    assert config.hash() != build_config({"method": "k24-literal"}).hash()


def test_fields_that_were_added_later_tell_runs_apart_where_they_differ_from_what_was_done_before():
    default = build_config({}).hash()
    for key, value in ADDED.items():
        others = {
            "target_masks": "drawn",
            "acting_masks": "drawn",
            "grad_clip": "all",
            "gain_layers": "fc1",
            "pipeline": True,
        }
        other = others.get(key, 1 if isinstance(value, int) else 0.5)
        assert build_config({key: value}).hash() == default != build_config({key: other}).hash()


def test_a_team_that_acts_with_drawn_masks_is_frozen_with_a_warning(tiny_config):
    folder = train(tiny_config(method="k24-literal", t_max=400), "literal", progress=False)
    with pytest.warns(RunWarning, match="masks drawn at every step.* the frozen team has its argmax masks"):
        freeze_run(folder)


# --- the regression of notebook 01 -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "drawn"), [("k24-literal", True), ("k24", False)])
def test_the_regression_is_tested_with_the_masks_that_the_method_acts_with(method, drawn, monkeypatch):
    tested = []
    forward = torch.nn.Sequential.forward
    monkeypatch.setattr(torch.nn.Sequential, "forward", lambda net, x: tested.append(net.training) or forward(net, x))
    layer_experiments.three_functions(method, seed=0, steps=2, hidden_dim=8)
    assert tested == [True, True, drawn]
