"""Schedules: pure functions of how far a run has come."""

from typing import Literal

from k24lab.core.config import MaskConfig


def linear(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at progress 1, constant outside."""
    share = min(max(progress, 0.0), 1.0)
    return start + (end - start) * share


def temperature(
    progress: float,
    *,
    schedule: Literal["two_phase", "linear", "constant"],
    init: float,
    mid: float,
    minimum: float,
    anneal_start: float,
    anneal_end: float,
) -> float:
    """Temperature of the mask draw at `progress` = t_env / t_max.

    `two_phase`: init -> mid over the first half of [anneal_start, anneal_end], mid -> minimum over the
    second. `linear`: init -> minimum over the whole. Constant before and after. `constant`: init all along.
    """
    if schedule == "constant":
        return init
    share = (progress - anneal_start) / (anneal_end - anneal_start)
    if schedule == "linear":
        return linear(init, minimum, share)
    return linear(init, mid, 2 * share) if share < 0.5 else linear(mid, minimum, 2 * share - 1)


def mask_logit_scale(config: MaskConfig, progress: float) -> float:
    """Scale of the pattern logits at `progress`."""
    end = config.logit_scale_final
    return config.logit_scale if end is None else linear(config.logit_scale, end, progress)


def mask_temperature(config: MaskConfig, progress: float) -> float:
    """`temperature` with a configuration's settings."""
    return temperature(
        progress,
        schedule=config.temperature_schedule,
        init=config.temperature_init,
        mid=config.temperature_mid,
        minimum=config.temperature_min,
        anneal_start=config.anneal_start,
        anneal_end=config.anneal_end,
    )
