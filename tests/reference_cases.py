"""A learner in the middle of its training, episodes that differ in all that matters, and one update of both.

What `reference.py` is compared with in the tests of updates.
"""

import copy

import pytest
import torch
from reference import Reference, Update

from k24lab.envs.base import EnvSpec
from k24lab.lab.config import build_config
from k24lab.marl.learner import K24QLearner, build_learner
from k24lab.marl.replay import EpisodeBatch
from k24lab.ops import library as kernels

SPEC = EnvSpec(
    n_envs=4, n_agents=3, obs_dims=(6,) * 3, n_actions=(4,) * 3, state_dim=5, episode_limit=5, n_unit_types=3
)
LENGTHS, TERMINATED = (5, 2, 4, 3), (False, True, True, False)  # the others were cut by a time limit
SMALL = {"hidden_dim": 8, "mixing_embed_dim": 4, "t_max": 1000, "batch_size": 4, "buffer_size": 8, "n_envs": 4}
SMALL |= {"grad_norm_clip": 1e9, "reset_trigger": "off", "lr": 1e-2, "lr_final": 1e-3}
T_ENV, LATE = 300, 799  # the temperature lies between its ends; it is at its minimum


def episodes(
    seed: int, dtype: torch.dtype = torch.float64, lengths_of: tuple[int, int, int, int] = LENGTHS
) -> EpisodeBatch:
    """Episodes that differ in all that an update can mistake; what follows their ends is garbage."""
    g = torch.Generator().manual_seed(seed)
    b, t, n, a = len(lengths_of), max(lengths_of), SPEC.n_agents, SPEC.action_dim
    avail = torch.rand(b, t + 1, n, a, generator=g) < 0.5
    avail.scatter_(-1, torch.randint(a, (b, t + 1, n, 1), generator=g), True)
    alive = torch.ones(b, t + 1, n, dtype=torch.bool)
    alive[0, 2:, 1] = alive[2, 1:, 0] = False  # only doing nothing is left to the dead
    avail[~alive] = torch.tensor([True] + [False] * (a - 1))
    actions = (torch.rand(b, t, n, a, generator=g) * avail[:, :-1]).argmax(dim=-1)
    lengths = torch.tensor(lengths_of).unsqueeze(1)
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
    """One update of a learner and of the reference.

    Args:
        implementation: torch alone in "float64" or in "float32" (which needs `patch`), or the C "kernels" in float32.
    """

    def __init__(
        self,
        implementation: str,
        changes: dict,
        t_env: int = T_ENV,
        patch: pytest.MonkeyPatch | None = None,
        lengths: tuple[int, int, int, int] = LENGTHS,
    ):
        if implementation == "float32" and patch:
            patch.setattr(kernels, "library", lambda: None)
        elif implementation == "kernels" and kernels.library() is None:
            pytest.skip("the kernels are not built: no C compiler")
        self.exact = implementation == "float64"
        # Single precision: logits of about 10, divided by a temperature down to 0.1, and differences of probabilities.
        self.tolerance = 1e-9 if self.exact else 1e-3 if t_env < LATE else 5e-3
        self.learner = make(changes, torch.float64 if self.exact else torch.float32)
        batch = episodes(2, torch.float64 if self.exact else torch.float32, lengths)
        self.filled = batch.filled
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
        assert len(reference.chosen) == int(self.filled.sum()) * len(chosen)
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
        state = {f"agent.{n}" for n, _ in self.learner.agent.named_buffers()}
        twice = {f"agent.{n}" for n, _ in self.learner.agent.named_parameters(remove_duplicate=False)} - found.keys()
        assert found.keys() == self.reference.gradients.keys() - state - twice
        largest = max(g.abs().max().item() for g in self.reference.gradients.values() if g is not None)
        for name, gradient in found.items():
            expected = self.reference.gradients[name]
            if gradient is None or expected is None:
                assert gradient is None and (expected is None or not expected.any()), name
            else:
                self.close(gradient, expected, name, least=1e-3 * largest)
