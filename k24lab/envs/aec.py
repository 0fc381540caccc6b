"""AEC environments of PettingZoo, in which agents act one after another, as parallel ones."""

from typing import Any


def to_parallel(env: Any) -> tuple[Any, Any]:
    """The parallel environment, and the AEC environment inside if its agents really move in turn, else None.

    PettingZoo has two converters. `aec_to_parallel` lets all agents act in each step; it takes environments whose
    metadata say `is_parallelizable`. `turn_based_aec_to_parallel` takes all: a step is the move of one agent. An
    environment that is parallel already is returned as it is.
    """
    if not hasattr(env, "agent_iter"):
        return env, None
    from pettingzoo.utils.conversions import aec_to_parallel, turn_based_aec_to_parallel

    if getattr(env, "metadata", {}).get("is_parallelizable", False):
        return aec_to_parallel(env), None
    return turn_based_aec_to_parallel(env), env
