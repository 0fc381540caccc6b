"""Settings of the masks."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How masks are scored, drawn, kept apart and revived (`k24lab.core`)."""

    score_weight_power: float = 1.0  # p of |W|^p * EMA^q * sigmoid(hetero_alpha), in [0, 1]
    score_ema_power: float = 1.0  # q, in [0, 1]
    # What else than hetero_alpha learns through the scores: nothing, |W| from the TD loss, or also from the diversity.
    score_gradient: Literal["alpha", "td", "all"] = "td"
    ema_scope: Literal["mask", "shared"] = "mask"  # a running mean of |x| per mask, or one for all
    ema_decay: float = 0.99  # per learner update
    hetero_init_scale: float = 2.0  # standard deviation of hetero_alpha at the start
    noise: Literal["annealed", "literal", "none"] = "annealed"  # how a mask is drawn
    logit_scale: float = 10.0  # of the normalised pattern logits; no effect with noise="literal"
    logit_scale_final: float | None = None  # reached linearly at t_max; None: constant
    temperature_schedule: Literal["two_phase", "linear", "constant"] = "two_phase"  # constant: temperature_init
    temperature_init: float = 5.0
    temperature_mid: float = 1.0  # between the two phases
    temperature_min: float = 0.1
    anneal_start: float = 0.0  # share of t_max
    anneal_end: float = 0.8  # share of t_max; the temperature is constant from here on
    # From anneal_end on learn with the argmax masks that act (no temperature decides groups whose scores are all weak),
    # with these and no more changes to them, or go on with drawn masks.
    after_anneal: Literal["argmax", "frozen", "drawn"] = "argmax"
    # Masks of the target network and of acting (tests included): the argmax masks, or masks drawn as learning draws
    # them, anew for each update and for each env step.
    target_masks: Literal["argmax", "drawn"] = "argmax"
    acting_masks: Literal["argmax", "drawn"] = "argmax"
    mask_rnn: bool = True  # mask the two matrices of the GRU as well
    mask_per: Literal["agent", "type"] = "agent"  # whose masks (and networks of nops): each agent's or each unit type's
    diversity_coef: float = 1.0  # base of the adaptive coefficient; 0 switches the loss off
    # Cap of the adaptive coefficient, which grows as the loss falls: without one (None) separation never stops pushing.
    diversity_coef_max: float | None = 1.0
    diversity_history: int = 100  # updates that the adaptive coefficient averages over
    # Off: in the study `notebooks/grids/resets.yaml` resets, frequent or rare, gained nothing.
    reset_trigger: Literal["periodic", "adaptive", "off"] = "off"
    reset_target: Literal["unselected", "random"] = "unselected"  # which hetero_alpha entries are revived
    reset_interval: int = 10_000  # env steps
    reset_ratio: float = 0.1  # share of the candidates that is revived
    reset_threshold: float = 0.05  # running selection frequency under which an entry counts as unselected
    reset_ema_share: float = 0.5  # how far the EMA moves towards its mean at a reset
    kl_threshold: float = 0.1  # of the adaptive trigger (nats); the document's, never passed in our ablation
