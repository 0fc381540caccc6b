import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from k24lab.errors import RunError
from k24lab.marl.replay import PER_EPISODE, EpisodeBatch
from k24lab.methods import METHODS, get_method


@pytest.mark.parametrize("mixer", ["vdn", "qmix", "none"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_under_every_mixer_with_finite_numbers(method, mixer, make_learner, random_episodes):
    learner = make_learner(method=method, mixer=mixer)
    before = copy.deepcopy(learner.agent.state_dict())
    metrics = learner.update(random_episodes(), t_env=200, log=True)
    assert all(math.isfinite(value) for value in metrics.values())
    assert learner.n_updates == 1
    after = learner.agent.state_dict()
    for name, parameter in learner.agent.named_parameters():
        learned = "hetero_alpha" not in name or get_method(learner.config.method).learns_masks
        learned &= "for_bias" not in name  # before a head that starts at zero
        assert torch.equal(after[name], before[name]) != learned, name
        assert parameter.isfinite().all()


# --- padding and death -----------------------------------------------------------------------------------------


def lengthened(episodes: EpisodeBatch, extra: int) -> EpisodeBatch:
    """The same episodes with garbage after their ends, and `extra` more steps of it."""
    generator = torch.Generator().manual_seed(9)
    n = len(episodes.filled)
    longer = {}
    for name, value in vars(episodes).items():
        if name in PER_EPISODE:
            longer[name] = value
            continue
        more = value.new_zeros(n, extra, *value.shape[2:])
        longer[name] = torch.cat([value, more], dim=1)
    filled = longer["filled"]
    garbage = ~filled
    seen = torch.cat([filled, torch.zeros(n, 1, dtype=torch.bool)], dim=1)
    seen[:, 1:] |= filled  # the observation after the last step is no garbage
    for name in ("obs", "state"):
        noise = 100 * torch.randn(longer[name].shape, generator=generator, dtype=longer[name].dtype)
        longer[name][~seen] = noise[~seen]
    for name in ("avail_actions", "alive"):
        noise = torch.rand(longer[name].shape, generator=generator) < 0.5
        longer[name][~seen] = noise[~seen]
    longer["reward"][garbage] = 1000.0
    longer["terminated"][garbage] = True
    longer["actions"][garbage] = 3
    return EpisodeBatch(**longer)


@pytest.mark.parametrize("mixer", ["vdn", "qmix", "none"])
@pytest.mark.parametrize("method", ["fups", "nops", "k24"])
def test_padding_changes_neither_loss_nor_gradient_nor_activations(method, mixer, make_learner, random_episodes):
    episodes = random_episodes(dtype=torch.float64)
    a, b = (make_learner(torch.float64, method=method, mixer=mixer) for _ in range(2))
    plain = a.update(episodes, t_env=200, log=True)
    padded = b.update(lengthened(episodes, 3), t_env=200, log=True)
    assert padded == pytest.approx(plain, rel=1e-9)
    for (name, p), q in zip(a.agent.named_parameters(), b.agent.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    for (name, p), q in zip(a.agent.named_buffers(), b.agent.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=name)


def test_padding_changes_nothing_of_the_adaptive_reset(make_learner, random_episodes):
    episodes = random_episodes(dtype=torch.float64)
    a, b = (make_learner(torch.float64, reset_trigger="adaptive") for _ in range(2))
    a.update(episodes, t_env=200)
    b.update(lengthened(episodes, 9), t_env=200)
    torch.testing.assert_close(b.scheme.reset_trigger.previous_policy, a.scheme.reset_trigger.previous_policy)


@pytest.mark.parametrize("scope", ["mask", "shared"])
def test_running_activations_are_the_mean_over_played_steps_of_living_agents(scope, make_learner, random_episodes):
    learner = make_learner(torch.float64, ema_scope=scope)
    episodes = random_episodes(dtype=torch.float64)
    episodes.alive[:, 1:, 1] = False  # agent 1 dies after one step
    episodes.alive[:, :, 2] = False  # agent 2 never lives
    learner.update(episodes, t_env=200)
    size = episodes.obs.abs()
    rows = [size[:, :-1, 0][episodes.filled], size[:, 0, 1]]
    ema = learner.masked_layers["fc1"].ema_tracker.ema_activation
    if scope == "shared":
        torch.testing.assert_close(ema, torch.cat(rows).mean(dim=0, keepdim=True))
    else:
        expected = torch.stack([rows[0].mean(dim=0), rows[1].mean(dim=0), torch.ones(6, dtype=torch.float64)])
        torch.testing.assert_close(ema, expected)


def test_what_a_dead_agent_sees_changes_no_running_activation(make_learner, random_episodes):
    episodes = random_episodes(dtype=torch.float64)
    episodes.alive[:, 2:, 1] = False
    other = replace(episodes, obs=episodes.obs.clone())
    other.obs[:, 2:, 1] = 50.0
    a, b = (make_learner(torch.float64) for _ in range(2))
    a.update(episodes, t_env=200)
    b.update(other, t_env=200)
    for name, layer in a.masked_layers.items():
        torch.testing.assert_close(
            b.masked_layers[name].ema_tracker.ema_activation, layer.ema_tracker.ema_activation, msg=name
        )


@pytest.mark.parametrize("method", ["random24", "k24-alpha"])
def test_running_activations_that_no_score_reads_are_not_kept(method, make_learner, random_episodes):
    learner = make_learner(method=method)
    learner.update(random_episodes(), t_env=200)
    assert all((layer.ema_tracker.ema_activation == 1).all() for layer in learner.masked_layers.values())


# --- target networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["vdn", "qmix"])
def test_polyak_moves_the_targets_a_share_of_the_way(mixer, make_learner, random_episodes):
    learner = make_learner(polyak=0.25, mixer=mixer)
    with torch.no_grad():
        for parameter in learner.target_agent.parameters():
            parameter.add_(1.0)
    pairs = [(learner.target_agent, learner.agent), (learner.target_mixer, learner.mixer)]
    before = [[p.detach().clone() for p in target.parameters()] for target, _ in pairs]
    learner.update(random_episodes(), t_env=200)
    for (target, online), old in zip(pairs, before, strict=True):
        for t, o, b in zip(target.parameters(), online.parameters(), old, strict=True):
            torch.testing.assert_close(t, 0.75 * b + 0.25 * o)


@pytest.mark.parametrize("mixer", ["vdn", "qmix"])
def test_hard_update_copies_everything_at_its_interval_and_nothing_between(mixer, make_learner, random_episodes):
    learner = make_learner(target_update="hard", target_update_interval=3, mixer=mixer)

    def state():
        modules = (learner.target_agent, learner.target_mixer)
        return [v.clone() for m in modules for v in m.state_dict().values()]

    def online():
        return [v for m in (learner.agent, learner.mixer) for v in m.parameters()]

    start = state()
    for k in range(1, 3):
        learner.update(random_episodes(), t_env=200 * k)
        assert all(torch.equal(a, b) for a, b in zip(state(), start, strict=True))
    learner.update(random_episodes(), t_env=600)
    targets = [v for m in (learner.target_agent, learner.target_mixer) for v in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(targets, online(), strict=True))


def test_target_networks_see_the_masks_state_but_never_make_their_own(make_learner, random_episodes):
    learner = make_learner(reset_trigger="off")
    before = {n: layer.ema_tracker.ema_activation.clone() for n, layer in learner.masked_layers.items()}
    learner.update(random_episodes(), t_env=200)
    learner.update(random_episodes(seed=1), t_env=400)
    moved = {n: layer.ema_tracker.ema_activation.clone() for n, layer in learner.masked_layers.items()}
    for name, layer in learner.target_agent.masked_layers.items():
        assert not torch.equal(layer.ema_tracker.ema_activation, before[name])
        # Of the update before: the online network's is moved after its targets are.
        assert not torch.equal(layer.ema_tracker.ema_activation, moved[name])
    assert not any(p.requires_grad and p.grad is not None for p in learner.target_agent.parameters())


def test_acting_uses_the_argmax_masks_and_changes_no_state(make_learner):
    learner = make_learner()
    before, random_state = copy.deepcopy(learner.agent.state_dict()), learner.generator.get_state()
    a, b = learner.argmax_weights(), learner.argmax_weights()
    for name, layer in learner.masked_layers.items():
        assert torch.equal(a[name].weight, b[name].weight)
        assert not a[name].weight.requires_grad
        kept = (a[name].weight != 0).reshape(3, layer.out_features, -1).float().mean().item()
        assert kept == pytest.approx(0.5, abs=0.17)
    assert all(torch.equal(v, before[n]) for n, v in learner.agent.state_dict().items())
    assert torch.equal(learner.generator.get_state(), random_state)


# --- optimizer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["k24", "k24-literal"])
def test_coefficients_have_a_learning_rate_of_their_own_and_no_decay(method, make_learner, random_episodes):
    learner = make_learner(method=method, lr=1e-3)
    learner.update(random_episodes(), t_env=0)
    weights, alphas = learner.optimizer.param_groups
    assert {id(p) for p in alphas["params"]} == {id(layer.hetero_alpha) for layer in learner.masked_layers.values()}
    assert alphas["lr"] == pytest.approx(1e-3 * learner.config.alpha_lr_factor) and weights["lr"] == 1e-3
    assert alphas["weight_decay"] == 0
    everything = [*learner.agent.parameters(), *learner.mixer.parameters()]
    assert {id(p) for g in learner.optimizer.param_groups for p in g["params"]} == {id(p) for p in everything}


@pytest.mark.parametrize("method", ["random24", "fups", "nops"])
def test_methods_without_learned_masks_have_one_group_without_coefficients(method, make_learner):
    (group,) = make_learner(method=method, mixer="qmix").optimizer.param_groups
    assert all(p.requires_grad for p in group["params"])


@pytest.mark.parametrize("method", ["k24", "fups"])
def test_learning_rates_fall_linearly_to_their_end(method, make_learner, random_episodes):
    learner = make_learner(method=method, lr=1e-2, lr_final=2e-3, t_max=1000)
    for t_env, lr in ((0, 1e-2), (500, 6e-3), (1000, 2e-3), (1200, 2e-3)):
        learner.update(random_episodes(), t_env)
        factors = (1.0, learner.config.alpha_lr_factor)
        found = [group["lr"] for group in learner.optimizer.param_groups]
        assert found == pytest.approx([lr * factor for factor in factors[: len(found)]])


def test_gradient_norm_of_each_group_is_clipped_on_its_own(make_learner, random_episodes):
    free, clipped = make_learner(grad_norm_clip=1e6), make_learner(grad_norm_clip=1e-3)
    logged = [learner.update(random_episodes(), t_env=200, log=True)["grad_norm"] for learner in (free, clipped)]
    before, after = (
        [nn.utils.get_total_norm([p.grad for p in group["params"]]).item() for group in learner.optimizer.param_groups]
        for learner in (free, clipped)
    )
    assert len(before) == 2 and min(before) > 1e-3
    assert after == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert logged == pytest.approx([before[0]] * 2)  # of the weights, before it is clipped


def test_fixed_random_masks_stay_as_they_are_while_the_weights_learn(make_learner, random_episodes):
    learner = make_learner(method="random24")
    masks = {n: w.weight != 0 for n, w in learner.argmax_weights().items()}
    for k in range(5):
        learner.update(random_episodes(seed=k), t_env=200 * k)
    for name, weight in learner.argmax_weights().items():
        assert torch.equal(weight.weight != 0, masks[name]), name


# --- state -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"mixer": "qmix"}, {"reset_trigger": "adaptive"}, {"method": "k24-literal"}])
def test_learner_goes_on_bit_for_bit_where_it_was_saved(changes, make_learner, random_episodes):
    settings = changes | {"kl_threshold": 0.0, "reset_target": "random"}
    learner = make_learner(**settings)
    for t_env in (200, 1000):
        learner.update(random_episodes(seed=t_env), t_env, log=True)
    state = copy.deepcopy(learner.state_dict())
    torch.manual_seed(99)
    other = make_learner(**settings)
    other.update(random_episodes(seed=5), t_env=100)
    other.load_state_dict(state)
    for t_env in (1400, 2600):
        a, b = (x.update(random_episodes(seed=t_env), t_env, log=True) for x in (learner, other))
        assert a == b
    for name, value in learner.agent.state_dict().items():
        assert torch.equal(other.agent.state_dict()[name], value), name
    assert other.n_updates == learner.n_updates == 4


def test_temperature_and_logit_scale_follow_their_schedules(make_learner):
    learner = make_learner(t_max=1000, temperature_min=0.1, logit_scale=2.0, logit_scale_final=12.0)
    assert [learner.scheme.temperature(t) for t in (0, 400, 800, 1000)] == pytest.approx([5.0, 1.0, 0.1, 0.1])
    assert [learner.scheme.logit_scale(t) for t in (0, 500, 1000, 2000)] == pytest.approx([2.0, 7.0, 12.0, 12.0])
    assert make_learner().scheme.logit_scale(900) == 10.0


@pytest.mark.parametrize("method", ["k24", "nops", "kaleidoscope"])
def test_numbers_that_are_not_finite_stop_the_update_and_leave_the_weights_as_they_were(
    method, make_learner, random_episodes
):
    learner = make_learner(method=method)
    good, bad = random_episodes(), random_episodes()
    bad.reward[0, 0] = torch.inf
    learner.update(good, 200)
    before = copy.deepcopy(learner.agent.state_dict())
    with pytest.raises(RunError, match=r"at t_env = 400 loss_td = inf, grad_norm = .*; the last checkpoint"):
        learner.update(bad, 400)
    assert learner.n_updates == 1
    weights = {name: value for name, value in learner.agent.state_dict().items() if "ema" not in name}
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    with torch.no_grad():
        dict(learner.agent.named_parameters())["layers.fc2.weight"][..., 0, 0] = torch.nan
    with pytest.raises(RunError, match=r"not finite are layers\.fc2\.weight; the last checkpoint"):
        learner.update(good, 600)


def test_the_layer_whose_gradient_breaks_is_named_first(make_learner, random_episodes):
    learner = make_learner(method="fups")
    layer = dict(learner.agent.named_parameters())["layers.fc2.weight"]
    layer.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RunError, match=r"not finite are gradient of layers\.fc2\.weight;"):
        learner.update(random_episodes(), 200)


def test_a_gradient_with_a_single_number_that_is_not_finite_is_named(make_learner, random_episodes):
    learner = make_learner(method="fups")
    layer = dict(learner.agent.named_parameters())["layers.fc1.weight"]
    first = torch.zeros_like(layer)
    first.view(-1)[0] = torch.inf
    layer.register_hook(lambda gradient: gradient + first)
    with pytest.raises(RunError, match=r"not finite are gradient of layers\.fc1\.weight;"):
        learner.update(random_episodes(), 200)


def test_of_many_broken_layers_those_nearest_to_the_loss_are_named(make_learner, random_episodes):
    learner = make_learner(method="fups")
    with torch.no_grad():
        for parameter in learner.agent.parameters():
            parameter.fill_(torch.nan)
    named = ", ".join(f"layers.{name}" for name in ("fc4.bias", "fc4.weight", "fc3.bias", "fc3.weight"))
    with pytest.raises(RunError, match=f"not finite are {re.escape(named)};"):
        learner.update(random_episodes(), 200)
