"""What K-2:4 learns inside a checkout of epymarl or pymarl2, tried on a stub of their interfaces (`fake_epymarl`)."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import epymarl_learners
import fake_epymarl
import pytest
import torch
from epymarl_learners import build, make_args
from fake_epymarl import make_batch

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl.batches import observations, to_episodes
from k24lab.marl.learner import build_learner

running = epymarl_learners.running  # a fixture


def acted_q_values(mac, batch) -> torch.Tensor:
    """Q-values [B, T1, N, A] step by step, as a runner asks for them."""
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t, test_mode=True) for t in range(batch["obs"].shape[1])], dim=1)


# --- learning --------------------------------------------------------------------------------------------------


def train(args: SimpleNamespace, updates: int):
    """A learner after some updates, and the TD loss of every tenth."""
    args.learner_log_interval = 10
    learner = build(args)
    for k in range(updates):
        learner.train(make_batch(args, n=16, seed=k), t_env=k, episode_num=k)
    return learner, [value for _, value in learner.logger.stats["loss_td"]]


def test_agents_that_see_the_same_learn_to_differ_with_masks_and_cannot_without(running):
    running()
    # gamma: what is learned must not grow for longer than the test.
    changes = {"t_max": 120, "target_update_interval_or_tau": 10, "standardise_rewards": False, "gamma": 0.3}
    learner, k24 = train(make_args(**changes), updates=120)
    _, shared = train(make_args(k24_args={"method": "fups"}, **changes), updates=120)
    assert k24[-1] < 0.2 * k24[0] and k24[-1] < 0.3 * shared[-1]
    actions = learner.mac.select_actions(make_batch(learner.args, n=2), t_ep=0, t_env=10**6, test_mode=True)
    assert actions.tolist() == [[0, 1], [0, 1]]  # agent i is paid for action i


def test_masks_stay_exactly_2_4_and_are_drawn_once_an_update(running, monkeypatch):
    running()
    learner, _ = train(make_args(), updates=10)
    for name, layer in learner.masked_layers.items():
        kept = (learner.agent.argmax_weights()[name].weight != 0).float()
        missing = -layer.in_features % 4
        groups = torch.nn.functional.pad(kept, (0, missing), value=0.5).unflatten(-1, (-1, 4)).sum(dim=-1)
        assert (groups.floor() <= 2).all() and (groups[..., : layer.in_features // 4] == 2).all(), name
    drawn, draw = [], learner.scheme.draw
    monkeypatch.setattr(learner.scheme, "draw", lambda layers, t_env, g: drawn.append(t_env) or draw(layers, t_env, g))
    learner.train(make_batch(learner.args), t_env=30, episode_num=1)
    assert drawn == [30]


def test_hetero_alpha_is_learned_in_a_group_of_its_own(running):
    running()
    learner = build(make_args())
    alphas = [layer.hetero_alpha for layer in learner.masked_layers.values()]
    before = [alpha.detach().clone() for alpha in alphas]
    learner.train(make_batch(learner.args), t_env=10, episode_num=1)
    assert all(alpha.grad.abs().sum() > 0 for alpha in alphas)
    assert all(not torch.equal(a, b) for a, b in zip(alphas, before, strict=True))
    others, own = learner.optimizer.param_groups
    assert list(map(id, own["params"])) == list(map(id, alphas))
    assert own["lr"] == pytest.approx(20 * others["lr"]) and others["lr"] == 0.005


@pytest.mark.parametrize("learner", ["k24_learner", "k24_nq_learner"])
@pytest.mark.parametrize("changes", [{}, {"obs_last_action": True, "obs_agent_id": True}, {"agent": "k24_type"}])
def test_an_update_is_k24labs_own_update(changes, learner, running):
    """Their batch, mixer and arguments in; what comes out is what `k24lab train` would have computed."""
    running()
    types = {"n_unit_types": 3, "unit_type_start": -3} if "agent" in changes else {}
    args = make_args(learner=learner, td_lambda=0.7, standardise_rewards=False, k24_args=types, **changes)
    theirs = build(args)
    ours = build_learner(replace(theirs.config, mixer="vdn"), theirs.spec)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for t_env in (10, 20, 900):
        batch = make_batch(args, seed=t_env)
        theirs.train(batch, t_env, episode_num=1)
        ours.update(to_episodes(batch, theirs.mac.settings), t_env)
    for name, value in ours.agent.state_dict().items():
        assert torch.equal(value, theirs.agent.state_dict()[name]), name


@pytest.mark.parametrize("changes", [{}, {"obs_last_action": True}, {"obs_agent_id": True}, {"agent": "k24_type"}])
def test_acting_step_by_step_equals_an_unroll_under_the_argmax_masks(changes, running):
    running()
    types = {"n_unit_types": 3, "unit_type_start": -3} if "agent" in changes else {}
    learner = build(make_args(k24_args=types, **changes))
    batch = make_batch(learner.args)
    acted = acted_q_values(learner.mac, batch)
    episodes = to_episodes(batch, learner.mac.settings)
    order = (episodes.filled.sum(dim=1)).tolist()
    assert order == sorted(order, reverse=True)
    with torch.no_grad():
        rows = learner.rows(episodes.unit_type)
        q_values = learner._unroll(episodes, rows, learner.argmax_weights()).q_values  # [N, T1, B, A]
    lengths = (batch["filled"].sum(dim=1) - 1).squeeze(-1)
    terminal = batch["terminated"].sum(dim=1).squeeze(-1).bool()
    assert (terminal == (lengths < 4)).all()
    back = lengths.argsort(descending=True, stable=True).argsort()
    for b, length in enumerate(lengths.tolist()):
        expected = q_values[:, : length + 1, back[b]].transpose(0, 1)
        torch.testing.assert_close(acted[b, : length + 1], expected, atol=1e-5, rtol=1e-5)


def test_what_was_learned_takes_effect_with_the_next_episode(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    before = acted_q_values(learner.mac, batch)
    learner.train(batch, t_env=10, episode_num=1)
    after = acted_q_values(learner.mac, batch)
    assert not torch.allclose(after, before)
    assert torch.equal(after, acted_q_values(learner.mac, batch))


def test_acting_keeps_to_available_actions_and_gives_no_gradient(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    only = torch.zeros_like(batch["avail_actions"])
    only[..., 1] = 1
    actions = learner.mac.select_actions(batch.with_values(avail_actions=only), t_ep=0, t_env=0)
    assert (actions == 1).all() and not learner.mac.hidden_states.requires_grad


def test_the_last_action_follows_the_observation_and_is_nothing_at_first():
    batch = make_batch(make_args())
    seen = observations(batch, 0, 5, last_action=True)
    obs, before = seen.split([fake_epymarl.N_OBS, 3], dim=-1)
    assert torch.equal(obs, batch["obs"]) and torch.equal(before[:, 1:], batch["actions_onehot"][:, :-1])
    assert before[:, 1].any() and not before[:, 0].any()
    for t in range(5):
        assert torch.equal(observations(batch, t, t + 1, last_action=True), seen[:, t : t + 1])


def test_the_observation_behind_the_end_of_an_episode_and_padding_teach_nothing(running):
    running()
    args = make_args(standardise_rewards=False)
    batch = make_batch(args)
    after = batch["terminated"].bool().cumsum(dim=1) > 0
    behind = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)  # [B, T1, 1]
    assert behind.any()
    garbage = batch.with_values(
        obs=torch.where(behind.unsqueeze(-1), 7.0, batch["obs"]), reward=torch.where(behind, 9.0, batch["reward"])
    )
    states = []
    for given in (batch, garbage):
        learner = build(args)
        for k in range(2):
            learner.train(given, t_env=10 * k, episode_num=k)
        states.append(learner.agent.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_standardised_rewards_have_no_scale(running):
    running()
    ends = []
    for scale, shift in ((1.0, 0.0), (100.0, -50.0)):
        learner = build(make_args(standardise_rewards=True))
        batch = make_batch(learner.args)
        learner.train(batch.with_values(reward=batch["reward"] * scale + shift), t_env=10, episode_num=1)
        ends.append(learner.logger.stats["loss_td"][0][1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    plain = build(make_args(standardise_rewards=False))
    plain.train(make_batch(plain.args), t_env=10, episode_num=1)
    assert plain.logger.stats["loss_td"][0][1] != pytest.approx(ends[0], rel=1e-3)


def test_standardised_returns_are_learned_on_their_own_scale(running):
    running()
    learner = build(make_args(standardise_returns=True, standardise_rewards=False))
    episodes = to_episodes(make_batch(learner.args, n=64), learner.mac.settings)
    episodes = replace(episodes, reward=1000 * episodes.reward)
    values = torch.zeros(1, *episodes.reward.T.shape)
    targets = learner._targets(episodes, values)[0][episodes.filled.T]
    assert targets.mean().abs() < 0.05 and targets.std() == pytest.approx(1, abs=0.05)
    moments = learner.moments["returns"]
    again = learner._targets(replace(episodes, terminated=torch.zeros_like(episodes.terminated)), values)
    assert moments.mean.item() > 100 and again.abs().max() < 10


def test_metrics_of_the_specification_are_logged_at_their_interval(running):
    running()
    learner = build(make_args(learner_log_interval=100))
    for t_env in (0, 50, 100, 150, 210):
        learner.train(make_batch(learner.args), t_env, episode_num=1)
    stats = learner.logger.stats
    assert [t for t, _ in stats["loss_td"]] == [0, 100, 210]
    expected = {"div_loss", "div_coef", "loss", "grad_norm", "temperature", "pattern_mean_similarity", "train_eval_gap"}
    expected |= {"q_taken_mean", "target_mean", "td_error_abs", "mask_flip_rate", "pattern_entropy"}
    assert expected | {"sparsity_layer_fc2", "pattern_0_prob"} <= stats.keys()
    assert stats["sparsity_layer_fc2"][0][1] == 0.5
    assert all(type(value) is float for entries in stats.values() for _, value in entries)


@pytest.mark.parametrize("name", ["k24_qmix.yaml", "k24_type_vdn.yaml"])
def test_a_loaded_learner_goes_on_as_the_saved_one(name, running, tmp_path):
    running()
    args = make_args(name=name)
    saved = build(args)
    for k in range(3):
        saved.train(make_batch(args, seed=k), t_env=100 * k, episode_num=k)
    saved.save_models(str(tmp_path))
    assert {"agent.th", "mixer.th", "opt.th", "k24.th"} <= {path.name for path in tmp_path.iterdir()}
    loaded = build(args)
    loaded.cuda()
    loaded.load_models(str(tmp_path))
    for learner in (saved, loaded):
        learner.train(make_batch(args, seed=9), t_env=400, episode_num=9)
    for part in ("agent", "mixer", "target_agent", "target_mixer"):
        theirs = getattr(loaded, part).state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in getattr(saved, part).state_dict().items()), part
    batch = make_batch(args)
    assert torch.equal(acted_q_values(saved.mac, batch), acted_q_values(loaded.mac, batch))


# --- unit types ------------------------------------------------------------------------------------------------


def typed(running, **changes):
    """A learner with a mask per unit type."""
    running()
    return build(make_args(name="k24_type_vdn.yaml", **changes))


def test_a_unit_acts_through_the_mask_of_the_type_it_shows(running):
    learner = typed(running)
    batch = make_batch(learner.args)
    swapped = batch.with_values(obs=batch["obs"].flip(dims=(2,)))
    acted = acted_q_values(learner.mac, batch)
    torch.testing.assert_close(acted_q_values(learner.mac, swapped), acted.flip(dims=(2,)))
    types = batch["obs"][:, 0, :, -3:].argmax(dim=-1)
    same = types[:, 0] == types[:, 1]
    assert same.any() and not same.all()
    torch.testing.assert_close(acted[same, 0, 0], acted[same, 0, 1])
    assert not torch.allclose(acted[~same, 0, 0], acted[~same, 0, 1])


def test_a_dead_unit_keeps_the_type_of_the_reset_and_counts_nowhere(running):
    learner = typed(running)
    batch = make_batch(learner.args)
    obs = batch["obs"].clone()
    obs[:, 2:, 0] = 0  # unit 0 dies after two steps
    obs[1, :, 1] = 0  # unit 1 of one episode is never there
    dead = batch.with_values(obs=obs)
    episodes = to_episodes(dead, learner.mac.settings)
    plain = to_episodes(batch, learner.mac.settings)
    assert torch.equal(episodes.unit_type[:, 0], plain.unit_type[:, 0])
    assert not episodes.alive[:, 2:, 0].any()
    never = ~episodes.alive[:, :, 1].any(dim=1)
    assert never.sum() == 1 and (episodes.unit_type[never, 1] == 0).all()
    # What a dead unit sees moves no running activation.
    obs[:, 2:, 0, 0] = 50.0
    emas = []
    for given in (dead, batch.with_values(obs=obs)):
        each = build(learner.args)
        each.train(given, t_env=10, episode_num=1)
        emas.append(each.masked_layers["fc1"].ema_tracker.ema_activation)
    torch.testing.assert_close(emas[0], emas[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit_type_start": 2}, r"obs\[2:5\] is \[1\.0, 1\.0, .*neither a one-hot nor all zeros"),
        ({"unit_type_start": 5}, "is not inside an observation of 7 numbers"),
        ({"unit_type_start": -2}, "is not inside an observation of 7 numbers"),
        ({"n_unit_types": None}, r"k24_args\.n_unit_types = None must be a whole number"),
        ({"n_unit_types": 0}, r"k24_args\.n_unit_types = 0 must be .*at least 1"),
    ],
)
def test_a_wrong_place_of_the_unit_type_is_an_error(given, message, running):
    with pytest.raises(ConfigError, match=message):
        learner = typed(running, k24_args=given)
        batch = make_batch(learner.args)
        learner.mac.init_hidden(batch.batch_size)
        learner.mac.select_actions(batch, t_ep=0, t_env=0)


def test_units_that_see_nothing_and_have_no_choice_do_not_count_for_masks_per_agent_either(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    obs, avail = batch["obs"].clone(), batch["avail_actions"].clone()
    obs[:, :, 0] = 0
    assert to_episodes(batch.with_values(obs=obs), learner.mac.settings).alive[0].all()  # it still has a choice
    avail[:, :, 0, 1:] = 0
    alive = to_episodes(batch.with_values(obs=obs, avail_actions=avail), learner.mac.settings).alive
    assert not alive[:, :, 0].any() and alive[0, :, 1].all()
