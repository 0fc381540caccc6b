"""Settings of what makes agents differ: masks, thresholds, gains, ids, hypernetworks; and how fast it learns."""

import typing
from dataclasses import dataclass
from typing import Any, Literal

from k24lab.errors import InputError
from k24lab.values import convert, range_problems

_POSITIVE = (
    "logit_scale temperature_init temperature_mid temperature_min diversity_history reset_interval alpha_lr_factor "
    "own_lr_factor threshold_scale embedding_dim"
).split()
_NOT_NEGATIVE = "hetero_init_scale diversity_coef kl_threshold gain_shrinkage".split()
_SHARE = (
    "score_weight_power score_ema_power ema_decay anneal_start anneal_end reset_ratio reset_threshold reset_ema_share "
    "lr_factor_ramp"
).split()


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Settings of what makes agents differ, most of them of masks; docs/method.md has the equations.

    Raises:
        InputError: all values of a wrong type or out of their range.

    Examples:
        >>> import k24lab
        >>> config = k24lab.MaskConfig(temperature_schedule="linear", anneal_end=0.5)
        >>> k24lab.SemiStructuredLinear24(8, 4, n_masks=3, config=config).temperature
        5.0
    """

    score_weight_power: float = 1.0  # p of |W|^p * EMA^q * sigmoid(hetero_alpha), in [0, 1]
    score_ema_power: float = 1.0  # q, in [0, 1]
    # What learns through the scores besides hetero_alpha: nothing ("alpha"), |W| from the TD loss ("td"), or |W| from
    # the TD loss and the diversity loss ("all").
    score_gradient: Literal["alpha", "td", "all"] = "td"
    ema_scope: Literal["mask", "shared"] = "mask"  # a running mean of |x| for each mask, or one for all masks
    ema_decay: float = 0.99  # per learner update
    hetero_init_scale: float = 2.0  # standard deviation of hetero_alpha at the start
    # How a mask is drawn: from softmax(logits / temperature), by Gumbel-softmax of the raw scores, or the argmax.
    noise: Literal["annealed", "literal", "none"] = "annealed"
    logit_scale: float = 10.0  # of the normalised pattern logits; no effect with noise="literal"
    logit_scale_final: float | None = None  # reached linearly at t_max; None: constant
    temperature_schedule: Literal["two_phase", "linear", "constant"] = "two_phase"  # constant: temperature_init
    temperature_init: float = 5.0
    temperature_mid: float = 1.0  # between the two phases
    temperature_min: float = 0.1
    anneal_start: float = 0.0  # share of t_max
    anneal_end: float = 0.8  # share of t_max; the temperature is constant from here on
    # Masks that learning uses after anneal_end: the argmax masks, the argmax masks of that moment for good ("frozen"),
    # or drawn masks as before. Groups whose scores are all small stay undecided at any temperature.
    after_anneal: Literal["argmax", "frozen", "drawn"] = "argmax"
    # Masks of the target network and of acting (tests included): the argmax masks, or masks drawn as learning draws
    # them, anew for each update and for each env step.
    target_masks: Literal["argmax", "drawn"] = "argmax"
    acting_masks: Literal["argmax", "drawn"] = "argmax"
    mask_rnn: bool = True  # mask the two matrices of the GRU as well
    mask_per: Literal["agent", "type"] = "agent"  # masks (or networks of nops) for each agent, or for each unit type
    diversity_coef: float = 1.0  # base of the adaptive coefficient; 0 switches the diversity loss off
    # Largest adaptive coefficient, which grows as the diversity loss falls. Without a limit (None) masks are pushed
    # apart for ever.
    diversity_coef_max: float | None = 1.0
    diversity_history: int = 100  # updates that the adaptive coefficient averages over
    # Off by default: resets gained nothing in the study `notebooks/grids/resets.yaml`.
    reset_trigger: Literal["periodic", "adaptive", "off"] = "off"
    reset_target: Literal["unselected", "random"] = "unselected"  # which entries of hetero_alpha are drawn anew
    reset_interval: int = 10_000  # env steps between two resets of the periodic trigger
    reset_ratio: float = 0.1  # share of the candidates that is drawn anew
    reset_threshold: float = 0.05  # running selection frequency below which an entry counts as unselected
    reset_ema_share: float = 0.5  # how far the EMA moves towards its mean at a reset
    kl_threshold: float = 0.1  # of the adaptive trigger, in nats; never exceeded in our ablation
    agent_id: bool = False  # append a one-hot agent index to the observation
    threshold_scale: float = 5.0  # Kaleidoscope's thresholds start at -scale (u + 1), u uniform in [0, 1)
    gain_layers: Literal["all", "fc1", "fc4"] = "all"  # layers in which agents have gains and biases of their own
    # How fast gains and biases of agents go back to the team's mean, times their learning rate; the whole of it where
    # their gradient is noise alone, none where it has one direction.
    gain_shrinkage: float = 0.0
    embedding_dim: int = 16  # of an agent, from which a hypernetwork makes its weights
    alpha_lr_factor: float = 20.0  # hetero_alpha learns this many times faster than the weights
    own_lr_factor: float = 1.0  # thresholds, gains and the columns for ids learn this many times faster
    lr_factor_ramp: float = 0.0  # share of t_max in which these factors grow from a tenth; 0: they are constant

    def __post_init__(self) -> None:
        """Check these settings; a whole configuration, which has more of them, has a check of its own."""
        hints: dict[str, Any] = typing.get_type_hints(MaskConfig)
        problems = []
        for name, kind in hints.items():
            try:
                object.__setattr__(self, name, convert(kind, getattr(self, name)))
            except TypeError as error:
                problems.append(f"{name} = {getattr(self, name)!r} {error}")
        if problems := problems or mask_problems(self):
            raise InputError("; ".join(problems))


def mask_problems(config: MaskConfig) -> list[str]:
    """Every setting of masks that is out of its range, as sentences."""
    values = {name: getattr(config, name) for name in MaskConfig.__dataclass_fields__}
    problems = range_problems(values, _POSITIVE, _NOT_NEGATIVE, _SHARE)
    if config.anneal_start >= config.anneal_end:
        problems.append(f"anneal_start = {config.anneal_start!r} must be below anneal_end = {config.anneal_end!r}")
    for name in ("logit_scale_final", "diversity_coef_max"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            problems.append(f"{name} = {value!r} must be above 0 or None")
    return problems
