"""A whole update of a learner against the slow one of `reference.py`: losses, gradients, optimiser, targets."""

import copy
import itertools

import pytest
import torch
from reference import Offsets, Reference, Update, adam, clipped, learning_rate

from k24lab import kernels
from k24lab.config import METHODS, build_config
from k24lab.envs.base import EnvSpec
from k24lab.marl.learner import K24QLearner, build_learner
from k24lab.marl.replay import EpisodeBatch

SPEC = EnvSpec(
    n_envs=4, n_agents=3, obs_dims=(6,) * 3, n_actions=(4,) * 3, state_dim=5, episode_limit=5, n_unit_types=3
)
LENGTHS, TERMINATED = (5, 2, 4, 3), (False, True, True, False)  # the others were cut by a time limit
SMALL = {"hidden_dim": 8, "mixing_embed_dim": 4, "t_max": 1000, "batch_size": 4, "buffer_size": 8, "n_envs": 4}
SMALL |= {"grad_norm_clip": 1e9, "reset_trigger": "off", "lr": 1e-2, "lr_final": 1e-3}
T_ENV, LATE = 300, 799  # the temperature lies between its ends; it is at its minimum
# Two implementations: torch alone (in float64, and in float32 without the kernels), and the C kernels in float32.


def episodes(seed: int, dtype: torch.dtype = torch.float64) -> EpisodeBatch:
    """Episodes that differ in all that an update can mistake; what follows their ends is garbage."""
    g = torch.Generator().manual_seed(seed)
    b, t, n, a = len(LENGTHS), SPEC.episode_limit, SPEC.n_agents, SPEC.action_dim
    avail = torch.rand(b, t + 1, n, a, generator=g) < 0.5
    avail.scatter_(-1, torch.randint(a, (b, t + 1, n, 1), generator=g), True)
    alive = torch.ones(b, t + 1, n, dtype=torch.bool)
    alive[0, 2:, 1] = alive[2, 1:, 0] = False  # only doing nothing is left to the dead
    avail[~alive] = torch.tensor([True] + [False] * (a - 1))
    actions = (torch.rand(b, t, n, a, generator=g) * avail[:, :-1]).argmax(dim=-1)
    lengths = torch.tensor(LENGTHS).unsqueeze(1)
    filled, steps = torch.arange(t) < lengths, torch.arange(t + 1)
    avail[steps > lengths] = False
    obs, state = 3 * torch.randn(b, t + 1, n, SPEC.obs_dim, generator=g), torch.randn(b, t + 1, 5, generator=g)
    obs[steps > lengths], state[steps > lengths] = 50.0, -50.0
    reward = 2 * torch.randn(b, t, generator=g)
    return EpisodeBatch(
        obs=obs.to(dtype),
        state=state.to(dtype),
        avail_actions=avail,
        alive=alive,
        actions=actions,
        reward=torch.where(filled, reward, 77.0).to(dtype),
        terminated=(torch.arange(t) == lengths - 1) & torch.tensor(TERMINATED).unsqueeze(1) | ~filled,
        filled=filled,
        unit_type=torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1], [1, 1, 1]]),
        won=torch.zeros(b, dtype=torch.bool),
    )


def make(changes: dict, dtype: torch.dtype) -> K24QLearner:
    """A learner in the middle of its training: targets of their own, masks undecided, Adam with moments."""
    if changes["method"] == "kaleidoscope":
        changes = {"mask_rnn": False} | changes
    torch.manual_seed(3)
    learner = build_learner(build_config(SMALL | changes), SPEC)
    modules = (learner.agent, learner.target_agent, learner.mixer, learner.target_mixer)
    with torch.no_grad():
        for module in modules:
            for name, parameter in module.to(dtype).named_parameters():
                if "threshold" in name:
                    parameter.copy_(torch.randn_like(parameter) - 2)  # half of the weights are kept
                elif "alpha" not in name or module is learner.target_agent:
                    parameter.copy_(1.5 * parameter + 0.25 * torch.randn_like(parameter))
    learner.update(episodes(1, dtype), t_env=T_ENV - 100)
    return learner


class Compared:
    """One update of a learner and of the reference."""

    def __init__(self, implementation: str, changes: dict, t_env: int = T_ENV, patch: pytest.MonkeyPatch | None = None):
        if implementation == "float32" and patch:
            patch.setattr(kernels, "library", lambda: None)
        elif implementation == "kernels" and kernels.library() is None:
            pytest.skip("the kernels are not built: no C compiler")
        self.exact = implementation == "float64"
        # Single precision: logits of about 10, divided by a temperature down to 0.1, and differences of probabilities.
        self.tolerance = 1e-9 if self.exact else 1e-3 if t_env < LATE else 5e-3
        self.learner = make(changes, torch.float64 if self.exact else torch.float32)
        batch = episodes(2, torch.float64 if self.exact else torch.float32)
        self.before = copy.deepcopy(self.learner.state_dict())
        self.t_env = t_env
        self.values: list[torch.Tensor] = []
        original = self.learner._td_error

        def record(*arguments):
            self.values = [x.detach() for x in original(*arguments)[:3]]
            return original(*arguments)

        self.learner._td_error = record
        update = Update(self.learner.config, SPEC, self.before, batch, t_env)
        self.reference: Reference = update.result
        self.metrics = self.learner.update(batch, t_env)

    def close(self, found: torch.Tensor, expected: torch.Tensor, what: str, least: float = 1e-12) -> None:
        """Equal up to rounding: of the largest entry (or `least`), since sums of large numbers may be small."""
        scale = max(expected.abs().max().item(), least)
        error = (found.double() - expected).abs().max().item() / scale
        assert error < self.tolerance, f"{what}: {error:.2g} of the largest entry"

    def check_values(self) -> None:
        reference, (_, chosen, targets) = self.reference, self.values
        assert len(reference.chosen) == sum(LENGTHS) * len(chosen)
        for found, expected in ((chosen, reference.chosen), (targets, reference.targets)):
            numbers = torch.stack([found[k, t, b] for k, b, t in expected])
            self.close(numbers, torch.tensor(list(expected.values()), dtype=torch.float64), "values")
        tolerance = {"rel": 1e-9 if self.exact else 1e-4}
        assert self.metrics["loss_td"] == pytest.approx(reference.loss_td, **tolerance)
        assert ("div_loss" in self.metrics) == (reference.div_loss is not None)
        assert self.metrics.get("div_loss", 0.0) == pytest.approx(reference.div_loss or 0.0, **tolerance)
        assert self.metrics.get("div_coef", 0.0) == pytest.approx(reference.div_coef, **tolerance)

    def check_gradients(self) -> None:
        found = {f"agent.{n}": p.grad for n, p in self.learner.agent.named_parameters()}
        found |= {f"mixer.{n}": p.grad for n, p in self.learner.mixer.named_parameters()}
        assert found.keys() == {n for n in self.reference.gradients if "ema_" not in n and "selection" not in n}
        largest = max(g.abs().max().item() for g in self.reference.gradients.values() if g is not None)
        for name, gradient in found.items():
            expected = self.reference.gradients[name]
            if gradient is None or expected is None:
                assert gradient is None and (expected is None or not expected.any()), name
            else:
                self.close(gradient, expected, name, least=1e-3 * largest)


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
    "types": {"mask_per": "type"},
    "separate networks of types": {"method": "nops", "mask_per": "type"},
    "heads of types": {"method": "multih", "mask_per": "type"},
    "thresholds of types": {"method": "kaleidoscope", "mask_per": "type"},
    "dense GRU": {"mask_rnn": False},
    "dense GRU, one mask": {"method": "magnitude24", "mask_rnn": False},
    "no noise": {"noise": "none"},
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
@pytest.mark.parametrize("t_env", [799, 800])
def test_after_the_annealing_masks_are_the_argmax_frozen_or_still_drawn(t_env, after, implementation, monkeypatch):
    compared = check(implementation, {"method": "k24", "mixer": "qmix", "after_anneal": after}, monkeypatch, t_env)
    fixed = compared.learner.agent.layers["fc1"].hetero_alpha.grad is None
    assert fixed == (after == "frozen" and t_env == 800)


# --- the optimiser and the target networks ---------------------------------------------------------------------


def by_group(learner: K24QLearner) -> list[dict[str, torch.nn.Parameter]]:
    """Names and parameters of each group of the optimiser, by the rule: all that learns; coefficients apart."""
    named = {f"agent.{n}": p for n, p in learner.agent.named_parameters()}
    named |= {f"mixer.{n}": p for n, p in learner.mixer.named_parameters()}
    apart = {n: p for n, p in named.items() if "hetero_alpha" in n}
    return [{n: p for n, p in named.items() if n not in apart}, *([apart] if learner.config.learns_masks else [])]


@pytest.mark.parametrize("implementation", ["float64", "kernels"])
@pytest.mark.parametrize("clip", [1e9, 0.005])
@pytest.mark.parametrize("method", ["k24", "k24-literal", "random24", "fups", "kaleidoscope"])
def test_the_step_is_adams_with_a_rate_and_a_clipped_norm_of_each_group(method, clip, implementation, monkeypatch):
    changes = {"method": method, "mixer": "qmix", "grad_norm_clip": clip, "alpha_lr_factor": 7.0}
    compared = Compared(implementation, changes, patch=monkeypatch)
    compared.check_values()
    learner, before = compared.learner, compared.before
    moments = before["optimizer"]["state"]
    groups = [group for group in by_group(learner) if group]
    order = [name for group in groups for name in group]
    for group, factor in zip(groups, (1.0, 7.0), strict=False):
        gradients = {n: g for n in group if (g := compared.reference.gradients[n]) is not None}
        assert sum(float((g * g).sum()) for g in gradients.values()) ** 0.5 > 0.005
        gradients = clipped(gradients, clip)
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
