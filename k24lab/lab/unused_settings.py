"""Which settings change nothing of what a run learns, given its other settings."""

import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

from k24lab.lab.config import NOT_HASHED, Config, build_config
from k24lab.methods import METHODS, get_method
from k24lab.methods.base import Switch
from k24lab.methods.k24 import ALL_MASK_SETTINGS

# Settings and their values under which others have no effect, and which.
SWITCHES: tuple[Switch, ...] = (
    ({"learner": ("q",)}, "td_lambda"),
    ({"mixer": ("vdn", "none")}, "mixing_embed_dim"),
    ({"target_update": ("polyak",)}, "target_update_interval"),
    ({"target_update": ("hard",)}, "polyak"),
    ({"diversity_coef": (0.0,)}, "diversity_coef_max diversity_history"),
    (
        {"reset_trigger": ("off",)},
        "reset_target reset_interval reset_ratio reset_threshold reset_ema_share kl_threshold",
    ),
    ({"reset_trigger": ("periodic",)}, "kl_threshold"),
    ({"reset_trigger": ("adaptive",)}, "reset_interval"),
    ({"reset_target": ("random",)}, "reset_threshold"),
    ({"noise": ("literal",)}, "logit_scale logit_scale_final"),
    ({"noise": ("none",)}, "target_masks acting_masks"),
    ({"temperature_schedule": ("linear", "constant")}, "temperature_mid"),
    ({"temperature_schedule": ("constant",)}, "temperature_min anneal_start"),
    ({"temperature_schedule": ("constant",), "after_anneal": ("drawn",)}, "anneal_end"),
    ({"score_ema_power": (0.0,)}, "ema_scope ema_decay reset_ema_share"),
    # Where the diversity learns too, "td" adds up the same gradients in another order.
    ({"score_weight_power": (0.0,), "diversity_coef": (0.0,)}, "score_gradient"),
)

NEUTRAL = {"own_lr_factor": 1.0, "lr_factor_ramp": 0.0}  # as if there were no such setting


def unused_fields(config: Mapping[str, Any]) -> set[str]:
    """Fields of a configuration that could have any other value: its run would learn the same, bit for bit.

    Of a method that the package does not know all are used.
    """
    method = METHODS.get(str(config.get("method")))
    unused = set(ALL_MASK_SETTINGS).difference(method.mask_settings) if method else set()
    for when, idle in SWITCHES + (method.switches if method else ()):
        if all(config.get(key) in values for key, values in when.items()):
            unused.update(idle.split())
    return unused


def used_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the fields that change nothing."""
    unused = unused_fields(config)
    return {key: value for key, value in config.items() if key not in unused}


def same_run_key(config: Config) -> str:
    """A text that two configurations share if their runs learn the same, bit for bit, whatever they are called.

    For comparisons alone; names and hashes of runs are those of their configurations.
    """
    same = {key: value for key, value in vars(config).items() if key not in NOT_HASHED}
    kind, _, index = config.device.partition(":")
    same["device"] = f"{kind}:{int(index or 0)}" if kind == "cuda" else kind
    used = {key: value for key, value in used_fields(same).items() if NEUTRAL.get(key, ()) != value}
    family = get_method(config.method).family or config.method  # a method is its settings
    return json.dumps(used | {"method": family}, sort_keys=True)


def idle_changes(config: Config) -> list[str]:
    """Settings that differ from the method's own although they change nothing: what a user may have set in vain."""
    usual = build_config({"method": config.method, "learner": config.learner})
    return sorted(key for key in unused_fields(vars(config)) if getattr(config, key) != getattr(usual, key))


def log_idle_changes(config: Config) -> None:
    """Log a warning that names the `idle_changes`; the same ones once in a process, which may train many seeds."""
    if idle := idle_changes(config):
        _log_once(f"settings of no effect in this run ({config.method}): {', '.join(idle)}")


@functools.cache
def _log_once(text: str) -> None:
    logging.getLogger("k24lab").warning(text)
