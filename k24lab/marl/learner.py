"""The K-2:4 learner: value learning with masks drawn once per update."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.profiler import record_function

from k24lab.core import schedules
from k24lab.core.baselines import LAYER_WEIGHTS, mask_distance
from k24lab.core.diversity import K24DiversityManager, PatternOrthogonalityLoss
from k24lab.core.masks import MaskDraw, draw_masks, pin_masks
from k24lab.core.reset import ResetTrigger, mean_policy, reset_masks
from k24lab.envs.base import EnvSpec
from k24lab.errors import ConfigError
from k24lab.marl.agent import LayerWeights, RNNAgent, build_agent
from k24lab.marl.config import TrainingConfig
from k24lab.marl.diagnostics import gradient_norms, mask_metrics, refuse_nonfinite, threshold_metrics, value_metrics
from k24lab.marl.mixers import build_mixer
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs
from k24lab.marl.rows import Rows, rows_for
from k24lab.marl.seeding import Stream, derive_seed
from k24lab.marl.sequences import Episodes, dead_units, played_steps, unroll_episodes, weighted_abs_sums
from k24lab.marl.targets import double_q_values, greedy_actions, move_network, one_step, td_lambda

# Parts of an update, as a profiler and `k24lab bench train` name them.
PARTS = ("draw masks", "online forward", "target forward", "loss", "backward", "optimizer", "target and mask state")
FIXED_MASK_TEMPERATURE = 1e-3  # the law of a fixed mask is that mask
WITH_STATE = ("agent", "target_agent", "mixer", "target_mixer", "optimizer", "diversity", "reset_trigger")
RESET_POLICY_STEPS = 10  # first time steps that the adaptive reset compares policies on


def check_types(config: TrainingConfig, spec: EnvSpec) -> None:
    """Refuse masks or networks per unit type in an environment that has no unit types."""
    if config.per_type and not spec.n_unit_types:
        raise ConfigError("mask_per = 'type' needs an environment with unit types; this task has none")


class K24QLearner:
    """1-step double Q-learning of a team whose agents are masked views of one network.

    Every method runs through it: without masks it is plain VDN, QMIX or independent Q-learning.

    Args:
        config: the run's settings.
        spec: sizes of the task.
        agent, mixer: what is trained; built by the configuration where they are not given.
    """

    def __init__(
        self, config: TrainingConfig, spec: EnvSpec, agent: RNNAgent | None = None, mixer: nn.Module | None = None
    ):
        self.config, self.spec = config, spec
        check_types(config, spec)
        device = config.device
        input_dim = spec.obs_dim + (spec.n_agents if config.agent_id else 0)
        self.n_masks = spec.n_unit_types if config.per_type else spec.n_agents
        self.agent = (agent or build_agent(config, input_dim, spec.action_dim, self.n_masks)).to(device)
        state_dim = spec.state_dim if config.mixer == "qmix" else 0
        self.mixer = mixer or build_mixer(config.mixer, spec.n_agents, state_dim, config.mixing_embed_dim)
        self.mixer = self.mixer.to(device)
        self.target_agent, self.target_mixer = copy.deepcopy(self.agent), copy.deepcopy(self.mixer)
        self.masked_layers = self.agent.masked_layers
        self.threshold_layers = list(self.agent.threshold_layers.values())
        self.alphas = [layer.hetero_alpha for layer in self.masked_layers.values() if config.learns_masks]
        self.optimizer = self._build_optimizer()
        self._set_lr(t_env=0)
        self.orthogonality = PatternOrthogonalityLoss()
        self.diversity = K24DiversityManager(config.diversity_coef, config.diversity_history, config.diversity_coef_max)
        kind = config.reset_trigger if config.learns_masks else "off"
        self.reset_trigger = ResetTrigger(kind, config.reset_interval, config.t_max, config.kl_threshold)
        self.generator = torch.Generator(device).manual_seed(derive_seed(config.seed, Stream.MASKS))  # also resets
        self.n_updates = self.n_resets = 0
        self.logged_index: Tensor | None = None  # argmax patterns at the last logging step

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """Adam; hetero_alpha in a group of its own, whose rate is `alpha_lr_factor` times higher."""
        alphas = set(self.alphas)
        others = [p for m in (self.agent, self.mixer) for p in m.parameters() if p.requires_grad and p not in alphas]
        groups: list[dict[str, Any]] = [{"params": others}]
        if self.alphas:
            groups.append({"params": self.alphas})
        return torch.optim.Adam(groups, lr=self.config.lr, fused=True)

    def temperature(self, t_env: int) -> float:
        """Temperature of the mask draw after `t_env` env steps; fixed masks are drawn as they are."""
        if not self.config.learns_masks:
            return FIXED_MASK_TEMPERATURE
        return schedules.mask_temperature(self.config, t_env / self.config.t_max)

    def logit_scale(self, t_env: int) -> float:
        """Scale of the pattern logits after `t_env` env steps."""
        c = self.config
        if c.logit_scale_final is None:
            return c.logit_scale
        return schedules.linear(c.logit_scale, c.logit_scale_final, t_env / c.t_max)

    def _set_lr(self, t_env: int) -> None:
        """Learning rates after `t_env` env steps."""
        c = self.config
        lr = c.lr if c.lr_final is None else schedules.linear(c.lr, c.lr_final, t_env / c.t_max)
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.config.alpha_lr_factor), strict=False):
            group["lr"] = lr * factor

    def _optimizer_step(self, t_env: int, loss_td: float) -> Tensor:
        """Clip the gradients, step; returns the norm of the weights' gradient, or with grad_clip="all" of all.

        Each group is clipped by its own norm, because alpha's grows as the temperature falls.
        """
        clip, groups = self.config.grad_norm_clip, self.optimizer.param_groups
        norms = [nn.utils.get_total_norm(p.grad for p in g["params"] if p.grad is not None) for g in groups]
        refuse_nonfinite(loss_td, torch.stack(norms).sum().item(), (self.agent, self.mixer), t_env)
        if self.config.grad_clip == "all":
            norms = [torch.linalg.vector_norm(torch.stack(norms))] * len(norms)
        for group, norm in zip(groups, norms, strict=True):
            nn.utils.clip_grads_with_norm_(group["params"], clip, norm)
        self._set_lr(t_env)
        self.optimizer.step()
        self.n_updates += 1
        return norms[0]

    def argmax_weights(self) -> dict[str, LayerWeights]:
        """Effective weights of the online network under the argmax masks."""
        return self.agent.argmax_weights()

    @torch.no_grad()
    def weights_for(
        self, agent: RNNAgent, masks: str, t_env: int, generator: torch.Generator
    ) -> dict[str, LayerWeights]:
        """Effective weights without a gradient, under "drawn" masks (as learning draws them) or "argmax" masks."""
        draw = self._draw(agent, t_env, generator) if masks == "drawn" and self.alphas else None
        if draw is None:
            return agent.argmax_weights()
        return agent.weights(dict(zip(agent.masked_layers, draw.masks, strict=True)))

    def rows(self, unit_type: Int[Tensor, "B N"]) -> Rows:
        """Which unit of these episodes is seen through which mask."""
        return rows_for(self.config, unit_type, self.n_masks)

    def update(self, batch: EpisodeBatch, t_env: int, log: bool = False) -> dict[str, float]:
        """One gradient step on a batch of episodes; returns its metrics (more of them if `log`)."""
        self._freeze_if_due(t_env)
        with record_function("draw masks"):
            draw = self._draw(self.agent, t_env, self.generator)
            # Before the network runs, so that its gradient, as large as the masks, is made after the network's.
            similarity = self._similarity(draw)
        rows = self.rows(batch.unit_type)
        # First the target network: the activations that the online one keeps for its gradient need not wait for it.
        with record_function("target forward"), torch.no_grad():
            weights = self.weights_for(self.target_agent, self.config.target_masks, t_env, self.generator)
            target_q = self._unroll(batch, rows, weights).q_values
        with record_function("online forward"):
            masks = dict(zip(self.masked_layers, draw.masks, strict=True)) if draw else {}
            online = self._unroll(batch, rows, self.agent.weights(masks))
        with record_function("loss"):
            td_error, chosen_q, targets = self._td_error(batch, online.q_values, target_q)
            filled = batch.filled.T.expand_as(td_error)
            loss_td = self._mean_loss(td_error, filled)
        metrics = {"loss_td": loss_td.item()}
        if log:
            metrics |= value_metrics(td_error, chosen_q, targets, filled)
            metrics |= self._network_metrics(batch, rows, online, draw, t_env)
        with record_function("backward"):
            self.optimizer.zero_grad()
            diversity, values = self._diversity(similarity, loss_td.item())
            metrics |= values
            if log and self.alphas:
                metrics |= gradient_norms({"alpha_grad_td": loss_td, "alpha_grad_div": diversity}, self.alphas)
            (loss_td + diversity).backward()
        with record_function("optimizer"):
            grad_norm = self._optimizer_step(t_env, metrics["loss_td"])
        with record_function("target and mask state"):
            self._update_target()
            self._after_masks(batch, rows, online, draw, t_env)
        metrics["loss"] = metrics["loss_td"] + metrics.get("div_coef", 0.0) * metrics.get("div_loss", 0.0)
        if log:
            metrics["grad_norm"] = grad_norm.item()
            if draw:
                metrics |= {"temperature": self.temperature(t_env), "n_resets": float(self.n_resets)}
        return metrics

    def _draw(self, agent: RNNAgent, t_env: int, generator: torch.Generator) -> MaskDraw | None:
        """Masks for learning after `t_env` env steps; None where the method has none."""
        layers = list(agent.masked_layers.values())
        if not layers:
            return None
        noise = self.config.noise if self.config.learns_masks and not self._settled(t_env) else "none"
        # Through masks that are fixed not even |W| learns.
        with torch.set_grad_enabled(bool(self.alphas) and torch.is_grad_enabled()):
            return draw_masks(layers, self.temperature(t_env), self.logit_scale(t_env), noise, generator)

    def _settled(self, t_env: int) -> bool:
        """Whether learning has gone over to the argmax masks."""
        return self.config.after_anneal != "drawn" and t_env >= self.config.anneal_end * self.config.t_max

    def _freeze_if_due(self, t_env: int) -> None:
        """With after_anneal="frozen" fix the masks, from the end of the annealing on.

        Nothing has to be remembered: after a resume the pinned coefficients give the same masks, pinned once more.
        """
        if self.config.after_anneal == "frozen" and self.alphas and self._settled(t_env):
            pin_masks(list(self.masked_layers.values()))
            self.alphas = []

    @torch.no_grad()
    def best_draw(self, t_env: int) -> MaskDraw:
        """The argmax masks of the online network, with the law that they are the mode of."""
        layers = list(self.masked_layers.values())
        return draw_masks(layers, self.temperature(t_env), self.logit_scale(t_env), "none")

    def _unroll(self, batch: EpisodeBatch, rows: Rows, weights: dict) -> Episodes:
        """Q-values over whole episodes."""
        return unroll_episodes(self.agent, weights, agent_inputs(batch.obs, self.config.agent_id), batch.filled, rows)

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
        return q_tot - targets, q_tot.detach(), targets

    def _targets(self, batch: EpisodeBatch, next_value: Float[Tensor, "K T B"]) -> Float[Tensor, "K T B"]:
        return one_step(batch.reward.T, batch.terminated.T, next_value, self.config.gamma)

    def _mean_loss(self, td_error: Float[Tensor, "K T B"], filled: Bool[Tensor, "K T B"]) -> Float[Tensor, ""]:
        """Mean over the filled steps of the Huber loss (0.5 e^2 near 0) or the squared error."""
        zero = torch.zeros_like(td_error)
        each = F.huber_loss if self.config.td_loss == "huber" else F.mse_loss
        return (each(td_error, zero, reduction="none") * filled).sum() / filled.sum()

    def _similarity(self, draw: MaskDraw | None) -> Tensor | None:
        """What the diversity loss lessens: how alike the pattern distributions are, or Kaleidoscope's masks."""
        if self.threshold_layers:
            return -mask_distance(self.threshold_layers, LAYER_WEIGHTS)
        return self.orthogonality(draw.pattern_probs) if draw and self.alphas else None

    def _diversity(self, similarity: Tensor | None, loss_td: float) -> tuple[Tensor | float, dict[str, float]]:
        """The weighted diversity loss, and its metrics; it moves hetero_alpha alone unless score_gradient is "all"."""
        if similarity is None:
            return 0.0, {}
        value = similarity.item()
        coef = self.diversity.coefficient(loss_td, value) if self.config.diversity_coef else 0.0
        return (coef * similarity if coef else 0.0), {"div_loss": value, "div_coef": coef}

    def _update_target(self) -> None:
        """Move the target networks: a little at each update, or wholly at intervals."""
        c = self.config
        if c.target_update == "hard" and self.n_updates % c.target_update_interval:
            return
        share = c.polyak if c.target_update == "polyak" else 1.0
        move_network(self.target_agent, self.agent, share)
        move_network(self.target_mixer, self.mixer, share)

    def _after_masks(
        self, batch: EpisodeBatch, rows: Rows, online: Episodes, draw: MaskDraw | None, t_env: int
    ) -> None:
        """State that follows learned masks: selection frequency, running activations, resets."""
        if not self.config.learns_masks:
            return
        if self.alphas and self.config.score_ema_power:
            self._update_ema(batch, rows, online)
        if self.config.reset_trigger == "off":
            return
        for layer, mask in zip(self.masked_layers.values(), draw.masks if draw else (), strict=True):
            layer.count_selection(mask)
        policy = None
        if self.config.reset_trigger == "adaptive":
            policy = self._mean_policy(batch, online.q_values.detach())
        # A reset flips masks; after the annealing neither noise nor the learning rate is left to recover from it.
        if self.reset_trigger.due(t_env, policy) and not self._settled(t_env):
            self._reset()

    @torch.no_grad()
    def _update_ema(self, batch: EpisodeBatch, rows: Rows, online: Episodes) -> None:
        """Mean |x| per mask over the steps that were played by living units."""
        weight = played_steps(batch, rows)
        count = weight.sum(dim=(1, 2))
        means = weighted_abs_sums(online, weight / count.clamp_min(1)[:, None, None], list(self.masked_layers))
        for name, layer in self.masked_layers.items():
            layer.ema_tracker.update(means[name], count)

    def _mean_policy(self, batch: EpisodeBatch, q_values: Float[Tensor, "N T1 B A"]) -> Tensor:
        """Over the first steps of living units."""
        steps = slice(0, min(RESET_POLICY_STEPS, batch.filled.shape[1]))
        avail = batch.avail_actions.permute(2, 1, 0, 3)[:, steps]
        played = batch.filled.T[steps] & batch.alive.permute(2, 1, 0)[:, steps]
        return mean_policy(q_values[:, steps], avail, played)

    def _reset(self) -> None:
        """Soften the EMA and revive coefficients (or dropped weights), in all masked layers but the first."""
        self.n_resets += 1
        reset_masks(list(self.masked_layers.values())[1:], self.config, self.optimizer, self.generator)
        for thresholds in self.threshold_layers[1:]:
            thresholds.reset(self.config.reset_ratio, self.generator)

    @torch.no_grad()
    def _network_metrics(
        self, batch: EpisodeBatch, rows: Rows, online: Episodes, draw: MaskDraw | None, t_env: int
    ) -> dict[str, float]:
        metrics = {"dead_units": dead_units(online, played_steps(batch, rows))}
        metrics |= threshold_metrics(self.agent.threshold_layers, self.n_resets)
        return metrics | (self._mask_metrics(batch, rows, online.q_values, draw, t_env) if draw else {})

    def _mask_metrics(
        self, batch: EpisodeBatch, rows: Rows, q_values: Tensor, draw: MaskDraw, t_env: int
    ) -> dict[str, float]:
        """Everything about masks that METHOD section 6 lists."""
        best = self.best_draw(t_env).pattern_index
        metrics = mask_metrics(draw, best, self.logged_index, list(self.masked_layers))
        self.logged_index = best
        evaluated = self._unroll(batch, rows, self.argmax_weights()).q_values
        avail = batch.avail_actions.permute(2, 1, 0, 3)
        differ = (greedy_actions(q_values, avail) != greedy_actions(evaluated, avail))[:, :-1]
        played = batch.filled.T & batch.alive.permute(2, 1, 0)[:, :-1]
        metrics["train_eval_gap"] = differ[played].float().mean().item()
        return metrics

    def state_dict(self) -> dict:
        """All that an update depends on."""
        return {name: getattr(self, name).state_dict() for name in WITH_STATE} | {
            "generator": self.generator.get_state(),
            "n_updates": self.n_updates,
            "n_resets": self.n_resets,
            "logged_index": self.logged_index,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take everything back."""
        for name in WITH_STATE:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.n_updates, self.n_resets = state["n_updates"], state["n_resets"]
        self.logged_index = state["logged_index"]


class K24NQLearner(K24QLearner):
    """The same with TD(lambda) targets: the design document's learner for SMACv2, after pymarl2.

    `learner="nq"` also brings pymarl2's optimiser settings (`k24lab.lab.config.LEARNER_DEFAULTS`).
    """

    def _targets(self, batch: EpisodeBatch, next_value: Float[Tensor, "K T B"]) -> Float[Tensor, "K T B"]:
        c = self.config
        return td_lambda(batch.reward.T, batch.terminated.T, batch.filled.T, next_value, c.gamma, c.td_lambda)


def build_learner(config: TrainingConfig, spec: EnvSpec) -> K24QLearner:
    """The configured learner."""
    return (K24NQLearner if config.learner == "nq" else K24QLearner)(config, spec)
