"""The learner: value learning with the masks of a mask scheme, drawn once per update."""

import contextlib
import copy
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.profiler import record_function

from k24lab.core import schedules
from k24lab.core.gains import shrink_to_mean
from k24lab.core.masks import MaskDraw
from k24lab.core.reset import mean_policy
from k24lab.core.schemes import by_name
from k24lab.envs.base import EnvSpec
from k24lab.errors import ConfigError
from k24lab.marl.agent import RNNAgent, Weights, build_agent
from k24lab.marl.batching import (
    Episodes,
    Rows,
    Sorted,
    dead_units,
    played_steps,
    rows_for,
    sort_inputs,
    unroll_episodes,
    weighted_abs_sums,
)
from k24lab.marl.config import TrainingConfig
from k24lab.marl.diagnostics import gradient_norms, refuse_nonfinite, total_norm, value_metrics
from k24lab.marl.mixers import build_mixer
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs
from k24lab.marl.seeding import Stream, derive_seed
from k24lab.marl.targets import Followed, double_q_values, greedy_actions, one_step, td_lambda
from k24lab.methods import get_method

# Parts of an update, as a profiler and `k24lab bench train` name them.
PARTS = ("draw masks", "online forward", "target forward", "loss", "backward", "optimizer", "target and mask state")
WITH_STATE = ("agent", "target_agent", "mixer", "target_mixer", "optimizer")
RESET_POLICY_STEPS = 10  # first time steps that the adaptive reset compares policies on


def _part(name: str) -> contextlib.AbstractContextManager[Any]:
    """Name a part of an update for torch's profiler, if one is on: the name takes longer than a small operation."""
    return record_function(name) if torch.autograd._profiler_enabled() else contextlib.nullcontext()


def check_types(config: TrainingConfig, spec: EnvSpec) -> None:
    """Refuse masks or networks per unit type in an environment that has no unit types."""
    if config.per_type and not spec.n_unit_types:
        task = getattr(config, "task", "this task")  # other programs that train with this learner name no task
        raise ConfigError(f"mask_per = 'type' needs an environment with unit types; {task!r} has none")


@dataclass
class _Update:
    """What an update leaves to the mask scheme (see `k24lab.core.schemes.Update`)."""

    batch: EpisodeBatch
    rows: Rows
    online: Episodes  # of the online network
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def mean_abs_inputs(self, layers: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Mean |x| of each named layer over the steps that living units played, and how many steps these were."""
        weight = played_steps(self.batch, self.rows)
        count = weight.sum(dim=(1, 2))
        return weighted_abs_sums(self.online, weight / count.clamp_min(1)[:, None, None], layers), count

    def mean_policy(self) -> Tensor:
        """Mean softmax policy of living units over the first steps."""
        batch, steps = self.batch, slice(0, min(RESET_POLICY_STEPS, self.batch.filled.shape[1]))
        avail = batch.avail_actions.permute(2, 1, 0, 3)[:, steps]
        played = batch.filled.T[steps] & batch.alive.permute(2, 1, 0)[:, steps]
        return mean_policy(self.online.q_values.detach()[:, steps], avail, played)


class K24QLearner:
    """1-step double Q-learning of a team whose agents are masked views of one network.

    Every method runs through it: without masks it is plain VDN, QMIX or independent Q-learning.

    Args:
        config: the run's settings.
        spec: sizes of the task.
        agent: the network that is trained; built by the configuration where it is not given.
        mixer: as `agent`.
    """

    def __init__(
        self, config: TrainingConfig, spec: EnvSpec, agent: RNNAgent | None = None, mixer: nn.Module | None = None
    ):
        self.config, self.spec = config, spec
        check_types(config, spec)
        input_dim = spec.obs_dim + (spec.n_agents if config.agent_id else 0)
        self.n_masks = spec.n_unit_types if config.per_type else spec.n_agents
        self.agent = (agent or build_agent(config, input_dim, spec.action_dim, self.n_masks)).to(config.device)
        self.mixer = mixer or build_mixer(config.mixer, spec.n_agents, spec.state_dim, config.mixing_embed_dim)
        self.mixer = self.mixer.to(config.device)
        self.target_agent, self.target_mixer = copy.deepcopy(self.agent), copy.deepcopy(self.mixer)
        self.masked_layers = self.agent.masked_layers
        self.scheme = get_method(config.method).mask_scheme(dict(self.agent.layers.items()), config, config.t_max)
        self.generator = torch.Generator(config.device)  # of mask draws and resets
        self.generator.manual_seed(derive_seed(config.seed, Stream.MASKS))
        self.n_updates = 0

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; what learns at a rate of its own is in a group of its own.

        Built for the first update: torch.optim then loads torch's compiler, which takes nearly as long as torch itself.
        """
        apart = [group for group, _ in self._faster]
        seen = {p for group in apart for p in group}
        others = [p for m in (self.agent, self.mixer) for p in m.parameters() if p.requires_grad and p not in seen]
        groups: list[dict[str, Any]] = [{"params": group} for group in (others, *apart)]
        return torch.optim.Adam(groups, lr=self.config.lr, fused=True)

    @functools.cached_property
    def _followed(self) -> tuple[Followed, Followed]:
        """What each target network follows; listed at the first update, because a change of dtype replaces buffers."""
        return Followed(self.target_agent, self.agent), Followed(self.target_mixer, self.mixer)

    @functools.cached_property
    def _faster(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters that learn at a rate of their own, and how many times faster than the weights."""
        c = self.config
        groups = [(self.scheme.alphas, c.alpha_lr_factor)]
        if c.own_lr_factor != 1 or c.lr_factor_ramp:
            groups.append((self.agent.own_parameters, c.own_lr_factor))
        return [(parameters, factor) for parameters, factor in groups if parameters]

    def update(self, batch: EpisodeBatch, t_env: int, log: bool = False) -> dict[str, float]:
        """One gradient step on a batch of episodes; returns its metrics (more of them if `log`)."""
        self.scheme.start_update(t_env)
        with _part("draw masks"):
            draw = self.scheme.draw(self.masked_layers, t_env, self.generator)
            # Before the network runs, so that its gradient, as large as the masks, is made after the network's.
            similarity = self.scheme.similarity(draw)
        rows = self.rows(batch.unit_type)
        inputs = self._inputs(batch, rows)
        # First the target network: the activations that the online one keeps for its gradient need not wait for it.
        with _part("target forward"), torch.no_grad():
            target_weights = self.weights_for("target", t_env, self.generator)
            target_q = unroll_episodes(self.agent, target_weights, inputs, rows).q_values
        with _part("online forward"):
            weights = self.agent.weights(by_name(self.masked_layers, draw))
            online = unroll_episodes(self.agent, weights, inputs, rows)
        with _part("loss"):
            td_error, chosen_q, targets = self._td_error(batch, online.q_values, target_q)
            filled = batch.filled.T.expand_as(td_error)
            loss_td = self._mean_loss(td_error, filled)
        metrics = {"loss_td": loss_td.item()}
        if log:
            metrics |= value_metrics(td_error, chosen_q, targets, filled)
            metrics |= self._network_metrics(batch, rows, online, draw, t_env)
        with _part("backward"):
            metrics |= self._backward(loss_td, similarity, log)
        with _part("optimizer"):
            grad_norm = self._optimizer_step(t_env, metrics["loss_td"])
        with _part("target and mask state"):
            self._update_target()
            self.scheme.after_step(draw, _Update(batch, rows, online, self.optimizer, self.generator), t_env)
        if log:
            metrics |= {"grad_norm": grad_norm.item()} | self.scheme.progress(t_env)
        return metrics

    def rows(self, unit_type: Int[Tensor, "B N"]) -> Rows:
        """Which unit of these episodes is seen through which mask."""
        return rows_for(self.config, unit_type, self.n_masks)

    @torch.no_grad()
    def weights_for(self, use: Literal["acting", "target"], t_env: int, generator: torch.Generator) -> Weights:
        """Weights without a gradient, of the online network for `acting` or of the `target` network for its values.

        The settings `acting_masks` and `target_masks` choose the masks; `drawn` ones use the generator.
        """
        agent, choice = self.target_agent, self.config.target_masks
        if use == "acting":
            agent, choice = self.agent, self.config.acting_masks
        return agent.weights(self.scheme.masks(agent.masked_layers, choice, t_env, generator))

    def argmax_weights(self) -> Weights:
        """Weights of the online network under the argmax masks."""
        return self.agent.argmax_weights()

    def _unroll(self, batch: EpisodeBatch, rows: Rows, weights: Weights) -> Episodes:
        """Q-values over whole episodes."""
        return unroll_episodes(self.agent, weights, self._inputs(batch, rows), rows)

    def _inputs(self, batch: EpisodeBatch, rows: Rows) -> Sorted:
        return sort_inputs(agent_inputs(batch.obs, self.config.agent_id), batch.filled, rows)

    def _td_error(self, batch: EpisodeBatch, online_q: Tensor, target_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """TD error, chosen q_tot and targets, each [K, T, B]; K = 1, or N without a mixer."""
        avail = batch.avail_actions.permute(2, 1, 0, 3)
        actions = batch.actions.permute(2, 1, 0)
        state = batch.state.transpose(0, 1)
        chosen = online_q[:, :-1].gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        q_tot = self.mixer(chosen, state[:-1])
        with torch.no_grad():
            next_q = double_q_values(online_q[:, 1:], target_q[:, 1:], avail[:, 1:])
            next_value = self.target_mixer(next_q, state[1:])
            targets = self._targets(batch, next_value)
        return q_tot - targets, q_tot, targets

    def _targets(self, batch: EpisodeBatch, next_value: Float[Tensor, "K T B"]) -> Float[Tensor, "K T B"]:
        return one_step(batch.reward.T, batch.terminated.T, next_value, self.config.gamma)

    def _mean_loss(self, td_error: Float[Tensor, "K T B"], filled: Bool[Tensor, "K T B"]) -> Float[Tensor, ""]:
        """Mean over the filled steps of the Huber loss (0.5 e^2 near 0) or the squared error."""
        zero = torch.zeros_like(td_error)
        each = F.huber_loss if self.config.td_loss == "huber" else F.mse_loss
        return (each(td_error, zero, reduction="none") * filled).sum() / filled.sum()

    def _backward(self, loss_td: Tensor, similarity: Tensor | None, log: bool) -> dict[str, float]:
        """Gradients of the TD loss and of what keeps masks apart; returns the metrics of the latter."""
        self.optimizer.zero_grad()
        value = loss_td.item()
        diversity, metrics = self.scheme.regulariser(similarity, value)
        if log and self.scheme.alphas:
            losses = {"alpha_grad_td": loss_td, "alpha_grad_div": diversity}
            metrics |= gradient_norms(losses, self.scheme.alphas)
        (loss_td + diversity).backward()
        return metrics | {"loss": value + metrics.get("div_coef", 0.0) * metrics.get("div_loss", 0.0)}

    def _optimizer_step(self, t_env: int, loss_td: float) -> Tensor:
        """Clip the gradients, step; returns the norm of the weights' gradient, or with grad_clip="all" of all.

        Each group is clipped by its own norm, because alpha's grows as the temperature falls.
        """
        clip, groups = self.config.grad_norm_clip, self.optimizer.param_groups
        grads = [[p.grad for p in group["params"] if p.grad is not None] for group in groups]
        norms = [total_norm(each).to(self.config.device) for each in grads]  # of no gradient it is on the CPU
        refuse_nonfinite(loss_td, torch.stack(norms).sum().item(), (self.agent, self.mixer), t_env)
        if self.config.grad_clip == "all":
            norms = [torch.linalg.vector_norm(torch.stack(norms))] * len(norms)
        for each, norm in zip(grads, norms, strict=True):
            share = clip / (norm + 1e-6)  # as torch's own clipping has it
            if each and share < 1:
                torch._foreach_mul_(each, share)
        self._set_lr(t_env)
        self.optimizer.step()
        if self.config.gain_shrinkage:
            self._shrink_gains()
        self.n_updates += 1
        return norms[0]

    def _shrink_gains(self) -> None:
        """Move gains and biases of agents towards the team's mean where their gradients are noise."""
        own = {parameter for gains in self.agent.gains.values() for parameter in gains.parameters()}
        for group in self.optimizer.param_groups:
            for parameter in own.intersection(group["params"]):
                state, steps = self.optimizer.state[parameter], self.optimizer.state[parameter]["step"].item()
                mean, square = (
                    state[name] / (1 - beta**steps)  # both start at zero
                    for name, beta in zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True)
                )
                shrink_to_mean(parameter, mean, square, group["lr"] * self.config.gain_shrinkage)

    def _set_lr(self, t_env: int) -> None:
        """Learning rates after `t_env` env steps."""
        c = self.config
        lr = c.lr if c.lr_final is None else schedules.linear(c.lr, c.lr_final, t_env / c.t_max)
        grown = schedules.linear(0.1, 1.0, t_env / (c.lr_factor_ramp * c.t_max)) if c.lr_factor_ramp else 1.0
        factors = [1.0, *(factor * grown for _, factor in self._faster)]
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = lr * factor

    def _update_target(self) -> None:
        """Move the target networks: a little at each update, or wholly at intervals."""
        c = self.config
        if c.target_update == "hard" and self.n_updates % c.target_update_interval:
            return
        share = c.polyak if c.target_update == "polyak" else 1.0
        for followed in self._followed:
            followed.move(share)

    @torch.no_grad()
    def _network_metrics(
        self, batch: EpisodeBatch, rows: Rows, online: Episodes, draw: MaskDraw | None, t_env: int
    ) -> dict[str, float]:
        """Dead units, all about the masks, and how often they act unlike the argmax masks."""
        metrics = {"dead_units": dead_units(online, played_steps(batch, rows))} | self.scheme.metrics(draw, t_env)
        if draw is None:
            return metrics
        evaluated = self._unroll(batch, rows, self.argmax_weights()).q_values
        avail = batch.avail_actions.permute(2, 1, 0, 3)
        differ = (greedy_actions(online.q_values, avail) != greedy_actions(evaluated, avail))[:, :-1]
        played = batch.filled.T & batch.alive.permute(2, 1, 0)[:, :-1]
        return metrics | {"train_eval_gap": differ[played].float().mean().item()}

    def state_dict(self) -> dict:
        """All that an update depends on."""
        parts = {name: getattr(self, name).state_dict() for name in WITH_STATE}
        counters = {"generator": self.generator.get_state(), "n_updates": self.n_updates}
        return parts | self.scheme.state_dict() | counters

    def load_state_dict(self, state: dict) -> None:
        """Take everything back."""
        for name in WITH_STATE:
            getattr(self, name).load_state_dict(state[name])
        self.scheme.load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.n_updates = state["n_updates"]


class K24NQLearner(K24QLearner):
    """The same with TD(lambda) targets: the original design's learner for SMACv2, after pymarl2.

    `learner="nq"` also brings pymarl2's optimiser settings (`k24lab.lab.config.LEARNER_DEFAULTS`).
    """

    def _targets(self, batch: EpisodeBatch, next_value: Float[Tensor, "K T B"]) -> Float[Tensor, "K T B"]:
        c = self.config
        return td_lambda(batch.reward.T, batch.terminated.T, batch.filled.T, next_value, c.gamma, c.td_lambda)


def build_learner(config: TrainingConfig, spec: EnvSpec) -> K24QLearner:
    """The configured learner."""
    return {"q": K24QLearner, "nq": K24NQLearner}[config.learner](config, spec)
