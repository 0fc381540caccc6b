"""How the masks of a network learn: what an update samples, what pushes masks apart, what moves after the step.

The learner knows no method: it asks a `MaskScheme` for masks and a regulariser, and tells it when a step was made.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from k24lab.core import schedules
from k24lab.core.baselines import LAYER_WEIGHTS, ThresholdLinear, mask_distance
from k24lab.core.config import MaskConfig
from k24lab.core.diversity import K24DiversityManager, PatternOrthogonalityLoss, similarity_stats
from k24lab.core.layers import SemiStructuredLinear24, update_trackers
from k24lab.core.masks import MaskDraw, argmax_masks, draw_masks, pin_masks
from k24lab.core.patterns import N_PATTERNS
from k24lab.core.reset import ResetTrigger, reset_masks

FIXED_MASK_TEMPERATURE = 1e-3  # the distribution of a fixed mask is that mask


@runtime_checkable
class Update(Protocol):
    """The update whose step has just been made, as far as a scheme needs it."""

    optimizer: torch.optim.Optimizer  # a reset clears its moments
    generator: torch.Generator  # of resets

    def mean_abs_inputs(self, layers: list[str]) -> tuple[dict[str, Float[Tensor, "M in"]], Float[Tensor, " M"]]:
        """Mean |x| of each named layer over the steps that living units played, and how many steps these were."""
        ...

    def mean_policy(self) -> Float[Tensor, " A"]:
        """Mean softmax policy of living units over the first steps."""
        ...


class MaskScheme:
    """The scheme of a method that learns no masks."""

    alphas: list[nn.Parameter]  # mask coefficients, which learn at a rate and with a clip of their own
    n_resets: int

    def __init__(self) -> None:
        self.alphas, self.n_resets = [], 0

    def start_update(self, t_env: int) -> None:
        """Change what is due before the update after `t_env` env steps."""

    def draw(
        self, layers: Mapping[str, SemiStructuredLinear24], t_env: int, generator: torch.Generator
    ) -> MaskDraw | None:
        """Masks for learning after `t_env` env steps, of these layers (of the online or the target network)."""
        return None

    def masks(
        self, layers: Mapping[str, SemiStructuredLinear24], choice: str, t_env: int, generator: torch.Generator
    ) -> dict[str, Float[Tensor, "M out in"]]:
        """Masks without a gradient, `drawn` as learning draws them or `argmax`; of each layer by its name."""
        return dict(zip(layers, argmax_masks(list(layers.values())), strict=True))

    def similarity(self, draw: MaskDraw | None) -> Float[Tensor, ""] | None:
        """What the regulariser lessens; None: there is no regulariser."""
        return None

    def regulariser(
        self, similarity: Float[Tensor, ""] | None, loss_td: float
    ) -> tuple[Tensor | float, dict[str, float]]:
        """The weighted loss that keeps masks apart, and its metrics."""
        return 0.0, {}

    def after_step(self, draw: MaskDraw | None, update: Update, t_env: int) -> None:
        """Move what follows the masks, and reset what is due."""

    def metrics(self, draw: MaskDraw | None, t_env: int) -> dict[str, float]:
        """What is logged about the masks of an update, before its step."""
        return {}

    def progress(self, t_env: int) -> dict[str, float]:
        """What is logged about the course of the run, after the step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that later updates depend on, besides the network's parameters and buffers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back; other entries are ignored."""


class LearnedScheme(MaskScheme):
    """What all learned masks have: an adaptive weight of the regulariser, and resets.

    Args:
        config: settings of the masks.
        t_max: env steps of the run.
        learns: False for masks that stay as they are.
    """

    def __init__(self, config: MaskConfig, t_max: int, learns: bool = True):
        super().__init__()
        self.config, self.t_max, self.learns = config, t_max, learns
        self.diversity = K24DiversityManager(config.diversity_coef, config.diversity_history, config.diversity_coef_max)
        trigger = config.reset_trigger if learns else "off"
        self.reset_trigger = ResetTrigger(trigger, config.reset_interval, t_max, config.kl_threshold)

    def settled(self, t_env: int) -> bool:
        """Whether learning has gone over to the argmax masks."""
        return self.config.after_anneal != "drawn" and t_env >= self.config.anneal_end * self.t_max

    def regulariser(
        self, similarity: Float[Tensor, ""] | None, loss_td: float
    ) -> tuple[Tensor | float, dict[str, float]]:
        """The similarity, weighted in proportion to the TD loss."""
        if similarity is None:
            return 0.0, {}
        value = similarity.item()
        coef = self.diversity.coefficient(loss_td, value) if self.config.diversity_coef else 0.0
        return (coef * similarity if coef else 0.0), {"div_loss": value, "div_coef": coef}

    def reset_if_due(self, update: Update, t_env: int) -> None:
        """Reset, if the trigger says so."""
        if self.reset_trigger.kind == "off":
            return
        policy = update.mean_policy() if self.reset_trigger.kind == "adaptive" else None
        # A reset flips masks; after the annealing neither noise nor the learning rate is left to recover from it.
        if self.reset_trigger.due(t_env, policy) and not self.settled(t_env):
            self.n_resets += 1
            self.reset(update)

    def reset(self, update: Update) -> None:
        """Give what is never selected a second chance, in all layers but the first."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Losses that the weight averages over, and when resets were."""
        parts = {name: getattr(self, name).state_dict() for name in ("diversity", "reset_trigger")}
        return parts | {"n_resets": self.n_resets}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.diversity.load_state_dict(state["diversity"])
        self.reset_trigger.load_state_dict(state["reset_trigger"])
        self.n_resets = state["n_resets"]


class PatternScheme(LearnedScheme):
    """2:4 masks for each agent, drawn once an update for all its episodes and time steps.

    Args:
        layers: of the network; those that are a `SemiStructuredLinear24` have masks.
        config: settings of the masks.
        t_max: env steps of the run.
        learns: False for masks that stay at their random start.
    """

    def __init__(self, layers: Mapping[str, nn.Module], config: MaskConfig, t_max: int, learns: bool):
        super().__init__(config, t_max, learns)
        self.layers = {name: layer for name, layer in layers.items() if isinstance(layer, SemiStructuredLinear24)}
        self.alphas = [layer.hetero_alpha for layer in self.layers.values() if learns]
        self.orthogonality = PatternOrthogonalityLoss()
        self.logged_index: Int[Tensor, "M groups"] | None = None  # argmax patterns at the last logging step

    def temperature(self, t_env: int) -> float:
        """Temperature of the draw after `t_env` env steps; fixed masks are drawn as they are."""
        return schedules.mask_temperature(self.config, t_env / self.t_max) if self.learns else FIXED_MASK_TEMPERATURE

    def logit_scale(self, t_env: int) -> float:
        """Scale of the pattern logits after `t_env` env steps."""
        return schedules.mask_logit_scale(self.config, t_env / self.t_max)

    def start_update(self, t_env: int) -> None:
        """With after_anneal="frozen" fix the masks, from the end of the annealing on.

        Nothing has to be remembered: after a resume the pinned coefficients give the same masks, pinned once more.
        """
        if self.config.after_anneal == "frozen" and self.alphas and self.settled(t_env):
            pin_masks(list(self.layers.values()))
            self.alphas = []

    def draw(
        self, layers: Mapping[str, SemiStructuredLinear24], t_env: int, generator: torch.Generator
    ) -> MaskDraw | None:
        """One draw for all layers; the argmax masks once learning has gone over to them."""
        noise = self.config.noise if self.learns and not self.settled(t_env) else "none"
        # Through masks that are fixed not even |W| learns.
        with torch.set_grad_enabled(bool(self.alphas) and torch.is_grad_enabled()):
            each = list(layers.values())
            return draw_masks(each, self.temperature(t_env), self.logit_scale(t_env), noise, generator)

    @torch.no_grad()
    def argmax_draw(self, t_env: int) -> MaskDraw:
        """The argmax masks, with the distribution that they are the mode of."""
        return draw_masks(list(self.layers.values()), self.temperature(t_env), self.logit_scale(t_env), "none")

    @torch.no_grad()
    def masks(
        self, layers: Mapping[str, SemiStructuredLinear24], choice: str, t_env: int, generator: torch.Generator
    ) -> dict[str, Float[Tensor, "M out in"]]:
        """As of `MaskScheme`; masks that do not learn, or no more, are the argmax masks."""
        draw = self.draw(layers, t_env, generator) if choice == "drawn" and self.alphas else None
        return super().masks(layers, choice, t_env, generator) if draw is None else by_name(layers, draw)

    def similarity(self, draw: MaskDraw | None) -> Float[Tensor, ""] | None:
        """How alike the pattern distributions of two agents are."""
        return self.orthogonality(draw.pattern_probs) if draw and self.alphas else None

    def after_step(self, draw: MaskDraw | None, update: Update, t_env: int) -> None:
        """Running activations, selection frequencies, resets."""
        if not self.learns:
            return
        if self.alphas and self.config.score_ema_power:
            means, count = update.mean_abs_inputs(list(self.layers))
            trackers = [layer.ema_tracker for layer in self.layers.values()]
            update_trackers(trackers, [means[name] for name in self.layers], count)
        if self.reset_trigger.kind != "off" and draw is not None:
            for layer, mask in zip(self.layers.values(), draw.masks, strict=True):
                layer.count_selection(mask)
        self.reset_if_due(update, t_env)

    def reset(self, update: Update) -> None:
        """Soften the running activations and revive coefficients."""
        reset_masks(list(self.layers.values())[1:], self.config, update.optimizer, update.generator)

    @torch.no_grad()
    def metrics(self, draw: MaskDraw | None, t_env: int) -> dict[str, float]:
        """Similarity, sparsity, pattern usage, entropy, and flips since the last call.

        `pattern_entropy` is in nats, mean over groups, log 6 = 1.79 at most; shares are in [0, 1].
        """
        assert draw is not None
        probs = draw.pattern_probs
        metrics = {f"pattern_{k}_similarity": v for k, v in similarity_stats(probs).items()}
        for name, mask in by_name(self.layers, draw).items():
            metrics[f"sparsity_layer_{name}"] = 1.0 - mask.mean().item()
        usage = torch.bincount(draw.pattern_index.flatten(), minlength=N_PATTERNS) / draw.pattern_index.numel()
        metrics |= {f"pattern_{p}_prob": share.item() for p, share in enumerate(usage)}
        metrics["pattern_entropy"] = -torch.xlogy(probs, probs).sum(dim=0).mean().item()
        best = self.argmax_draw(t_env).pattern_index
        if self.logged_index is not None:
            before = self.logged_index.to(best.device)  # a checkpoint is read onto the CPU
            metrics["mask_flip_rate"] = (best != before).float().mean().item()
        self.logged_index = best
        return metrics

    def progress(self, t_env: int) -> dict[str, float]:
        """Temperature of the draw, and resets so far."""
        return {"temperature": self.temperature(t_env), "n_resets": float(self.n_resets)}

    def state_dict(self) -> dict[str, Any]:
        """As of `LearnedScheme`, and the patterns that flips are counted from."""
        return super().state_dict() | {"logged_index": self.logged_index}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self.logged_index = state["logged_index"]


class ThresholdScheme(LearnedScheme):
    """Kaleidoscope's thresholds: they are parameters like any other, kept apart by the distance of their masks."""

    def __init__(self, layers: Mapping[str, nn.Module], config: MaskConfig, t_max: int):
        super().__init__(config, t_max)
        self.layers = {name: layer for name, layer in layers.items() if isinstance(layer, ThresholdLinear)}

    def similarity(self, draw: MaskDraw | None) -> Float[Tensor, ""] | None:
        """The negative mean distance of two masks."""
        return -mask_distance(list(self.layers.values()), LAYER_WEIGHTS)

    def after_step(self, draw: MaskDraw | None, update: Update, t_env: int) -> None:
        """Resets."""
        self.reset_if_due(update, t_env)

    def reset(self, update: Update) -> None:
        """Start weights anew that no mask keeps."""
        for layer in list(self.layers.values())[1:]:
            layer.reset(self.config.reset_ratio, update.generator)

    @torch.no_grad()
    def metrics(self, draw: MaskDraw | None, t_env: int) -> dict[str, float]:
        """The share that the masks drop of each layer, and resets so far."""
        sparsity = {f"sparsity_layer_{name}": layer.sparsity().mean().item() for name, layer in self.layers.items()}
        return sparsity | {"n_resets": float(self.n_resets)}


def by_name(layers: Mapping[str, SemiStructuredLinear24], draw: MaskDraw | None) -> dict[str, Tensor]:
    """The masks of a draw by the names of their layers; none without a draw."""
    return {} if draw is None else dict(zip(layers, draw.masks, strict=True))
