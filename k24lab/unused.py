"""Which settings change nothing of what a run learns, given its other settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from k24lab.config import Config, MaskConfig, build_config

OF_MASKS = frozenset({field.name for field in dataclasses.fields(MaskConfig)} | {"alpha_lr_factor", "grad_clip"})

# What the methods without learned 2:4 masks use of these; all others use all of them.
USED: dict[str, frozenset[str]] = {
    "random24": frozenset({"hetero_init_scale", "mask_rnn", "mask_per", "score_weight_power", "score_ema_power"}),
    "magnitude24": frozenset({"mask_rnn"}),
    "kaleidoscope": frozenset(
        "mask_rnn mask_per diversity_coef diversity_coef_max diversity_history after_anneal anneal_end reset_trigger "
        "reset_interval reset_ratio kl_threshold".split()
    ),
    "fups": frozenset(),
    "fups-id": frozenset(),
    "nops": frozenset({"mask_per"}),
    "multih": frozenset({"mask_per"}),
}

# A setting, its values under which others have no effect, and which.
SWITCHES: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("learner", ("q",), "td_lambda"),
    ("mixer", ("vdn", "none"), "mixing_embed_dim"),
    ("target_update", ("polyak",), "target_update_interval"),
    ("target_update", ("hard",), "polyak"),
    ("diversity_coef", (0.0,), "diversity_coef_max diversity_history"),
    (
        "reset_trigger",
        ("off",),
        "reset_target reset_interval reset_ratio reset_threshold reset_ema_share kl_threshold",
    ),
    ("noise", ("literal",), "logit_scale logit_scale_final"),
    ("noise", ("none",), "target_masks acting_masks"),
    ("temperature_schedule", ("linear", "constant"), "temperature_mid"),
    ("score_ema_power", (0.0,), "ema_scope ema_decay reset_ema_share"),
)


def unused_fields(config: Mapping[str, Any]) -> set[str]:
    """Fields of a configuration that could have any other value: its run would learn the same, bit for bit.

    Of a method that the package does not know all are used.
    """
    unused = set(OF_MASKS - USED.get(str(config.get("method")), OF_MASKS))
    for key, values, idle in SWITCHES:
        if config.get(key) in values:
            unused.update(idle.split())
    return unused


def used_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the fields that change nothing."""
    unused = unused_fields(config)
    return {key: value for key, value in config.items() if key not in unused}


def idle_changes(config: Config) -> list[str]:
    """Settings that differ from the method's own although they change nothing: what a user may have set in vain."""
    usual = build_config({"method": config.method, "learner": config.learner})
    return sorted(key for key in unused_fields(vars(config)) if getattr(config, key) != getattr(usual, key))
