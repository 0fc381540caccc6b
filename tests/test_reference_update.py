"""A whole update of a learner against the slow one of `reference.py`: losses, gradients, optimiser, targets."""

import itertools

import pytest
import torch
from reference import Offsets, Reference, Update, adam, clipped, learning_rate
from reference_cases import LATE, LENGTHS, SPEC, T_ENV, Compared, episodes, make

from k24lab.marl.learner import K24QLearner
from k24lab.methods import METHODS, get_method


def check(implementation: str, changes: dict, patch: pytest.MonkeyPatch, t_env: int = T_ENV) -> Compared:
    compared = Compared(implementation, changes, t_env, patch)
    compared.check_values()
    compared.check_gradients()
    return compared


MIXED = [
    ("qmix", "q", "huber", "float64"),
    ("qmix", "nq", "mse", "kernels"),
    ("vdn", "nq", "huber", "float64"),
    ("none", "q", "mse", "kernels"),
    ("none", "nq", "huber", "float64"),
    ("vdn", "q", "mse", "float32"),
]


@pytest.mark.parametrize(("mixer", "learner", "td_loss", "implementation"), MIXED)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_losses_targets_and_gradients_of_the_definition(
    method, mixer, learner, td_loss, implementation, monkeypatch
):
    check(implementation, {"method": method, "mixer": mixer, "learner": learner, "td_loss": td_loss}, monkeypatch)


@pytest.mark.parametrize(
    ("mixer", "learner", "td_loss"),
    list(itertools.product(["qmix", "vdn", "none"], ["q", "nq"], ["huber", "mse"])),
)
def test_every_mixer_learner_and_loss_goes_with_every_other(mixer, learner, td_loss, monkeypatch):
    check("float64", {"method": "fups", "mixer": mixer, "learner": learner, "td_loss": td_loss}, monkeypatch)


OPTIONS = {
    "ids": {"method": "fups-id"},
    "ids at a rate of their own": {"method": "fups-id", "own_lr_factor": 5.0},
    "thresholds at a rate of their own": {"method": "kaleidoscope", "own_lr_factor": 20.0},
    "gains of types": {"method": "gains", "mask_per": "type"},
    "gains in the first layer": {"method": "gains24", "gain_layers": "fc1"},
    "types": {"mask_per": "type"},
    "separate networks of types": {"method": "nops", "mask_per": "type"},
    "heads of types": {"method": "multih", "mask_per": "type"},
    "thresholds of types": {"method": "kaleidoscope", "mask_per": "type"},
    "dense GRU": {"mask_rnn": False},
    "dense GRU, one mask": {"method": "magnitude24", "mask_rnn": False},
    "no noise": {"noise": "none"},
    "drawn masks of the target network": {"target_masks": "drawn"},
    "argmax masks of the target network": {"method": "k24-literal", "target_masks": "argmax"},
    "literal noise": {"noise": "literal"},
    "no weight in the score": {"score_weight_power": 0.0},
    "no activations in the score": {"score_ema_power": 0.0},
    "roots in the score": {"score_weight_power": 0.5, "score_ema_power": 0.5},
    "score moves alpha alone": {"score_gradient": "alpha"},
    "score moves weights by both losses": {"score_gradient": "all"},
    "literal noise moves weights by both losses": {"noise": "literal", "score_gradient": "all"},
    "one running mean for all": {"ema_scope": "shared"},
    "logits that grow": {"logit_scale": 2.0, "logit_scale_final": 20.0},
    "linear temperature": {"temperature_schedule": "linear", "anneal_start": 0.1, "anneal_end": 0.9},
    "constant temperature": {"temperature_schedule": "constant", "temperature_init": 0.7},
    "no diversity": {"diversity_coef": 0.0},
    "diversity without a cap": {"diversity_coef": 0.3, "diversity_coef_max": None},
    "one update of history": {"diversity_history": 1, "diversity_coef_max": None},
}


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_masks_has_the_gradients_of_the_definition(name, implementation, monkeypatch):
    check(implementation, {"method": "k24", "mixer": "qmix"} | OPTIONS[name], monkeypatch)


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("after", ["argmax", "frozen", "drawn"])
@pytest.mark.parametrize("t_env", [LATE, LATE + 1])
def test_after_the_annealing_masks_are_the_argmax_frozen_or_still_drawn(t_env, after, implementation, monkeypatch):
    compared = check(implementation, {"method": "k24", "mixer": "qmix", "after_anneal": after}, monkeypatch, t_env)
    fixed = compared.learner.agent.layers["fc1"].hetero_alpha.grad is None
    assert fixed == (after == "frozen" and t_env > LATE)


# --- the optimiser and the target networks ---------------------------------------------------------------------


def by_group(learner: K24QLearner) -> list[dict[str, torch.nn.Parameter]]:
    """Names and parameters of each group of the optimiser, by the rule: all that learns; coefficients apart."""
    named = {f"agent.{n}": p for n, p in learner.agent.named_parameters()}
    named |= {f"mixer.{n}": p for n, p in learner.mixer.named_parameters()}
    apart = {n: p for n, p in named.items() if "hetero_alpha" in n}
    return [
        {n: p for n, p in named.items() if n not in apart},
        *([apart] if get_method(learner.config.method).learns_masks else []),
    ]


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("clip", [1e9, 0.005])
@pytest.mark.parametrize(
    ("method", "grad_clip"),
    [("k24", "groups"), ("k24", "all"), ("k24-literal", "all")]
    + [(method, "groups") for method in ("random24", "fups", "kaleidoscope")],
)
def test_the_step_is_adams_with_a_rate_of_each_group_and_clipped_norms(
    method, grad_clip, clip, implementation, monkeypatch
):
    changes = {"method": method, "mixer": "qmix", "grad_norm_clip": clip, "alpha_lr_factor": 7.0}
    changes["grad_clip"] = grad_clip
    compared = Compared(implementation, changes, patch=monkeypatch)
    compared.check_values()
    learner, before = compared.learner, compared.before
    moments = before["optimizer"]["state"]
    groups = [group for group in by_group(learner) if group]
    order = [name for group in groups for name in group]
    everything = {n: g for n in order if (g := compared.reference.gradients[n]) is not None}
    together = clipped(everything, clip)
    for group, factor in zip(groups, (1.0, 7.0), strict=False):
        own = {n: g for n, g in everything.items() if n in group}
        assert sum(float((g * g).sum()) for g in own.values()) ** 0.5 > 0.005
        gradients = clipped(own, clip) if grad_clip == "groups" else {n: together[n] for n in own}
        rate = factor * learning_rate(learner.config, compared.t_env)
        for name, gradient in gradients.items():
            module, _, key = name.partition(".")
            start = before[module][key].double()
            stepped = adam(start, gradient, moments[order.index(name)], rate)
            found = getattr(learner, module).state_dict()[key]
            # A step of Adam divides by the gradient's own size: where that is nearly 0, so are its digits.
            surely = gradient.abs() > (1e-6 if compared.exact else 1e-3) * gradient.abs().max()
            compared.close((found.double() - start)[surely], (stepped - start)[surely], name)


@pytest.mark.parametrize("method", ["k24", "kaleidoscope", "fups"])
@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"target_update": "polyak", "polyak": 0.3}, 0.3),
        ({"target_update": "hard", "target_update_interval": 2}, 1.0),  # it is the second update
        ({"target_update": "hard", "target_update_interval": 3}, 0.0),
    ],
)
def test_targets_move_after_the_step_by_a_share_or_wholly_at_their_interval(changes, share, method):
    compared = Compared("float64", {"method": method, "mixer": "qmix"} | changes)
    learner, before = compared.learner, compared.before
    for part in ("agent", "mixer"):
        online, target = getattr(learner, part), getattr(learner, f"target_{part}")
        for name, parameter in target.named_parameters():
            start, end = before[f"target_{part}"][name], online.state_dict()[name]
            assert not torch.equal(start, end), name
            torch.testing.assert_close(parameter.detach(), (1 - share) * start + share * end, msg=name)
        for name, buffer in target.named_buffers():  # averages already: copied as they were in this update
            source = before[part] if share else before[f"target_{part}"]
            assert torch.equal(buffer, source[name]), name


# --- that the comparison can fail ------------------------------------------------------------------------------


def reference_with(offsets: Offsets, learner: str = "q", td_loss: str = "mse") -> Reference:
    made = make({"method": "k24", "mixer": "qmix", "learner": learner, "td_loss": td_loss}, torch.float64)
    return Update(made.config, SPEC, made.state_dict(), episodes(2), T_ENV, offsets).result


@pytest.mark.parametrize("learner", ["q", "nq"])
@pytest.mark.parametrize("wrong", [Offsets(state=0), Offsets(avail=0), Offsets(value=0)])
def test_a_target_of_the_wrong_step_would_change_targets_and_gradients_a_lot(wrong, learner):
    right, changed = reference_with(Offsets(), learner), reference_with(wrong, learner)
    moved = [abs(right.targets[key] - changed.targets[key]) for key in right.targets]
    gradient = right.gradients["agent.layers.fc4.weight"]
    off = (changed.gradients["agent.layers.fc4.weight"] - gradient).norm() / gradient.norm()
    assert sum(moved) / len(moved) > 0.2 and off > 0.1


def test_the_episodes_hold_all_that_an_update_can_mistake():
    batch, right = episodes(2), reference_with(Offsets())
    assert len(set(LENGTHS)) == len(LENGTHS) and max(LENGTHS) == batch.filled.shape[1]
    ends = [bool(batch.terminated[b, length - 1]) for b, length in enumerate(LENGTHS)]
    assert sorted(ends) == [False, False, True, True]
    choices = list(right.greedy.values())
    assert sum(a != b for a, b in choices) > len(choices) / 4  # the best of all is often not available
    other = reference_with(Offsets(avail=0)).greedy
    assert sum(right.greedy[k][0] != other[k][0] for k in other) > len(other) / 4
    dead = [key for key in right.greedy if not batch.alive[key[1], key[2], key[0]]]
    assert dead and {key[0] for key in dead} == {0, 1}
    errors = torch.tensor([right.chosen[key] - right.targets[key] for key in right.chosen]).abs()
    assert (errors < 0.9).any() and (errors > 1.1).any()  # both branches of Huber's loss
    for b, length in enumerate(LENGTHS):
        states = batch.state[b, : length + 1]
        assert len({tuple(s) for s in states.tolist()}) == length + 1
    assert {int(u) for u in batch.unit_type.flatten()} == {0, 1, 2}


def test_masks_differ_between_agents_and_from_the_argmax():
    made = make({"method": "k24", "mixer": "vdn"}, torch.float64)
    drawn = Update(made.config, SPEC, made.state_dict(), episodes(2), T_ENV).result.masks
    best = {n: w.weight != 0 for n, w in made.argmax_weights().items()}
    for name, (first, second, third) in drawn.items():
        assert not torch.equal(first, second) and not torch.equal(second, third)
        assert not torch.equal(torch.stack([first, second, third]) != 0, best[name])
