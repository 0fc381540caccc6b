"""What surrounds an update, against its definition: running averages, resets, exploration, when updates are made."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from reference_cases import T_ENV, Compared, episodes, make

from k24lab.lab import collector, train as training
from k24lab.marl.learner import build_learner
from k24lab.marl.seeding import Stream, derive_seed

LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
LONG = (13, 2, 11, 3)  # more than the ten steps that policies are compared on, and two blocks of time


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize(
    "changes", [{}, {"ema_scope": "shared"}, {"mask_per": "type"}, {"mask_per": "type", "ema_scope": "shared"}]
)
def test_running_activations_move_a_share_towards_the_mean_of_what_was_played(changes, implementation):
    settings = {"method": "k24", "mixer": "qmix", "ema_decay": 0.9} | changes
    compared = Compared(implementation, settings, lengths=LONG)
    compared.check_values()
    for name in LAYERS:
        seen = compared.reference.activations[name]
        rows = [seen[m] for m in sorted(seen)]
        if changes.get("ema_scope") == "shared":
            rows = [[x for row in rows for x in row]]
        key = f"layers.{name}.ema_tracker.ema_activation"
        before, after = compared.before["agent"][key].double(), compared.learner.agent.state_dict()[key]
        mean = torch.stack([torch.stack(row).mean(dim=0) for row in rows])
        torch.testing.assert_close(after.double(), 0.9 * before + 0.1 * mean, rtol=1e-5, atol=1e-6, msg=name)
        assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("scope", ["mask", "shared"])
def test_a_type_that_is_in_no_episode_leaves_the_running_activations_to_the_others(scope):
    learner = make({"method": "k24", "mask_per": "type", "ema_scope": scope, "ema_decay": 0.0}, torch.float64)
    batch = episodes(2)
    batch.unit_type[batch.unit_type == 2] = 1
    before = learner.masked_layers["fc1"].ema_tracker.ema_activation.clone()
    learner.update(batch, T_ENV)
    played = batch.filled.unsqueeze(-1) & batch.alive[:, :-1]
    types = batch.unit_type.unsqueeze(1).expand_as(played)
    size = batch.obs[:, :-1].abs()
    means = [size[played & (types == u)].mean(dim=0) for u in (0, 1)]
    expected = size[played].mean(dim=0, keepdim=True) if scope == "shared" else torch.stack([*means, before[-1]])
    torch.testing.assert_close(learner.masked_layers["fc1"].ema_tracker.ema_activation, expected)


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("method", ["k24", "k24-literal"])
def test_selection_frequency_moves_a_hundredth_towards_the_drawn_mask(method, implementation):
    changes = {"method": method, "mixer": "vdn", "reset_trigger": "periodic", "reset_interval": 10_000}
    compared = Compared(implementation, changes)
    for name, masks in compared.reference.masks.items():
        key = f"layers.{name}.selection_frequency"
        before = compared.before["agent"][key].double()
        compared.close(compared.learner.agent.state_dict()[key], 0.99 * before + 0.01 * torch.stack(masks), name)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("method", ["k24", "kaleidoscope"])
def test_the_adaptive_reset_compares_mean_policies_of_the_first_ten_steps(method, implementation):
    changes = {"method": method, "mixer": "qmix", "reset_trigger": "adaptive", "kl_threshold": 1e9}
    compared = Compared(implementation, changes, lengths=LONG)
    policy = compared.reference.policy
    compared.close(compared.learner.scheme.reset_trigger.previous_policy, policy, "policy")
    q_values, avail = compared.reference.q_values, episodes(2, lengths_of=LONG).avail_actions
    opposite = torch.stack(
        [torch.softmax(torch.where(avail[b, t, n], -q, -torch.inf), 0) for (n, b, t), q in q_values.items()]
    ).mean(dim=0)
    assert (opposite - policy).abs().max() > 0.1  # that of -Q is another one


@pytest.mark.parametrize(("share", "expected"), [(0.99, 1), (1.01, 0)])
def test_the_adaptive_reset_is_due_once_the_divergence_from_the_last_policy_passes_the_threshold(share, expected):
    settings = {"method": "k24", "mixer": "qmix", "reset_trigger": "adaptive", "t_max": 10_000}
    compared = Compared("float64", settings | {"kl_threshold": 1e9}, t_env=1300)
    now, last = compared.reference.policy, compared.before["reset_trigger"]["previous_policy"]
    moved = kl(now, last)
    assert abs(moved - kl(last, now)) > 0.02 * moved > 0  # the direction matters
    learner = make(settings | {"kl_threshold": share * moved}, torch.float64)
    learner.update(episodes(2), t_env=1300)
    assert learner.scheme.n_resets == expected


@pytest.mark.parametrize("method", ["k24", "k24-literal", "kaleidoscope"])
def test_adaptive_resets_are_a_thousand_steps_apart(method):
    settings = {"method": method, "reset_trigger": "adaptive", "kl_threshold": 0.0, "t_max": 100_000}
    learner = make(settings, torch.float64)
    resets = []
    for t_env in (500, 999, 1000, 1500, 1999, 2000, 2999, 3100):
        before = learner.scheme.n_resets
        learner.update(episodes(t_env), t_env)
        resets += [t_env] * (learner.scheme.n_resets - before)
    assert resets == [1000, 2000, 3100]


@pytest.mark.parametrize("method", ["k24", "k24-literal", "kaleidoscope"])
def test_periodic_resets_come_at_their_interval_and_not_within_one_of_the_end(method):
    settings = {"method": method, "reset_trigger": "periodic", "reset_interval": 300, "after_anneal": "drawn"}
    learner = make(settings, torch.float64)
    resets = []
    for t_env in range(250, 1001, 50):
        before = learner.scheme.n_resets
        learner.update(episodes(t_env), t_env)
        resets += [t_env] * (learner.scheme.n_resets - before)
    assert resets == [300, 600]  # of 1000: 900 would be too late


def test_a_reset_softens_running_activations_and_revives_coefficients_of_all_layers_but_the_first():
    settings = {"method": "k24", "mixer": "qmix", "reset_ema_share": 0.25, "reset_ratio": 1.0, "reset_threshold": 0.5}
    calm, reset = (
        make(settings | {"reset_trigger": "periodic", "reset_interval": interval}, torch.float64)
        for interval in (10_000, 250)
    )
    for learner in (calm, reset):
        learner.update(episodes(2), T_ENV)
    for name, layer in reset.masked_layers.items():
        same = calm.masked_layers[name]
        before = same.ema_tracker.ema_activation
        expected = before if name == "fc1" else 0.75 * before + 0.25 * before.mean(dim=1, keepdim=True)
        torch.testing.assert_close(layer.ema_tracker.ema_activation, expected, msg=name)
        revived = (same.selection_frequency < 0.5) & (name != "fc1")
        assert torch.equal(layer.hetero_alpha != same.hetero_alpha, revived), name
        assert torch.equal(layer.selection_frequency, same.selection_frequency.masked_fill(revived, 0.5)), name
        for key in ("exp_avg", "exp_avg_sq"):
            moments, others = (m.optimizer.state[x.hetero_alpha][key] for m, x in ((reset, layer), (calm, same)))
            assert torch.equal(moments, others.masked_fill(revived, 0)), name


# --- through a run ---------------------------------------------------------------------------------------------

RUN = {"task": "rolenav:episode_limit=10", "n_envs": 4, "t_max": 400, "log_interval": 1, "epsilon_anneal_steps": 200}
RUN |= {"epsilon_start": 0.9, "epsilon_finish": 0.1, "batch_size": 10, "updates_per_rollout": 3, "buffer_size": 30}
RUN |= {"test_episodes": 6}


@pytest.fixture
def recorded(tiny_config, monkeypatch):
    """A run of ten rollouts of 40 env steps; what was collected, learned and logged."""
    collected, updates = [], []
    collect, build = collector.collect, build_learner

    def recording_collect(env, act, **settings):
        collected.append((env.spec.n_envs, settings["epsilon"], settings["seed"]))
        return collect(env, act, **settings)

    def recording_build(config, spec):
        learner = build(config, spec)
        update = learner.update

        def recording_update(batch, t_env, log=False):
            updates.append((t_env, len(batch.reward), log))
            return update(batch, t_env, log)

        learner.update = recording_update
        return learner

    monkeypatch.setattr(collector, "collect", recording_collect)
    monkeypatch.setattr(training, "build_learner", recording_build)

    def run(**changes):
        path = training.train(tiny_config(**RUN | {"method": "fups"} | changes), progress=False)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return collected, updates, rows

    return run


@pytest.mark.parametrize(("steps", "at"), [(200, [0.9, 0.74, 0.58, 0.42, 0.26]), (0, [0.9]), (1, [0.9])])
def test_exploration_falls_over_its_own_number_of_steps(steps, at, recorded):
    collected, _, rows = recorded(epsilon_anneal_steps=steps)
    training_epsilons = [epsilon for n_envs, epsilon, _ in collected if n_envs == 4]
    assert training_epsilons == pytest.approx([*at, *[0.1] * (10 - len(at))])
    assert {epsilon for n_envs, epsilon, _ in collected if n_envs == 6} == {0.0}  # tests are greedy
    logged = {row["t_env"]: row["epsilon"] for row in rows if "epsilon" in row}
    expected = {t: max(0.1, 0.9 - 0.8 * t / max(steps, 1)) for t in range(120, 401, 40)}  # after the rollout
    assert logged == pytest.approx(expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_exploration_is_at_its_end_after_exactly_its_number_of_steps(steps, tiny_config):
    config = tiny_config(epsilon_anneal_steps=steps, epsilon_start=0.9, epsilon_finish=0.1)
    found = [training.Trainer._epsilon(SimpleNamespace(config=config, t_env=t)) for t in range(9)]
    assert found == pytest.approx([0.9 - 0.8 * min(t / max(steps, 1), 1) for t in range(9)])


def test_every_rollout_has_new_episodes_and_every_test_the_same(recorded):
    collected, _, _ = recorded(test_interval=100)
    seeds = [seed for n_envs, _, seed in collected if n_envs == 4]
    assert seeds == [derive_seed(0, Stream.TRAIN_EPISODES, k) for k in range(10)] and len(set(seeds)) == 10
    tests = [seed for n_envs, _, seed in collected if n_envs == 6]
    assert set(tests) == {derive_seed(0, Stream.TEST_EPISODES, 0)} and len(tests) > 3


def test_updates_begin_with_a_full_batch_and_the_last_of_each_rollout_is_logged(recorded):
    _, updates, rows = recorded()
    # The third rollout fills ten episodes (of 12): three updates after each one from there on.
    assert updates == [(t, 10, k == 2) for t in range(120, 401, 40) for k in range(3)]
    logged = [(row["t_env"], row["update"], row["episode"]) for row in rows if "loss_td" in row]
    assert logged == [(40 * k, 3 * (k - 2), 4 * k) for k in range(3, 11)]


@pytest.mark.parametrize("interval", [40, 100, 1000])
def test_logs_tests_and_snapshots_come_once_an_interval_and_at_the_end(interval, recorded, monkeypatch):
    saved = []
    monkeypatch.setattr(training.Trainer, "_save_checkpoint", lambda self, final=False: saved.append(self.t_env))
    monkeypatch.setattr(training.RunFolder, "finish", lambda self, summary: None)
    intervals = {f"{name}_interval": interval for name in ("log", "test", "snapshot", "checkpoint")}
    _, _, rows = recorded(batch_size=4, method="k24", **intervals)
    # A thing is due at the first rollout that reaches or passes a multiple of its interval, and at the end.
    times = [t for t in range(0, 401, 40) if t == 400 or t // interval > (t - 40) // interval]
    assert [row["t_env"] for row in rows if "test_return_mean" in row] == times
    assert [row["t_env"] for row in rows if "loss_td" in row] == sorted({40, *times[1:]})
    assert saved == [*times[1:-1], 400]
