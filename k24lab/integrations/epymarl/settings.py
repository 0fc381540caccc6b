"""The flat arguments of a checkout as k24lab's settings: theirs for the learning, `k24_args` for the masks."""

import dataclasses
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from k24lab.envs.base import EnvSpec
from k24lab.errors import ConfigError, unknown
from k24lab.integrations.epymarl.configs import KEYS, TYPE_KEYS
from k24lab.lab.config import Config, build_config

# Switches of the checkouts that the K-2:4 agent and learner have only one position of.
DEMANDED = {
    "use_rnn": True,
    "use_layer_norm": False,
    "use_orthogonal": False,
    "agent_output_type": "q",
    "save_probs": False,
    "common_reward": True,
    "double_q": True,
    "q_lambda": False,
    "use_per": False,
    "optimizer": "adam",
    "weight_decay": 0,
}


@dataclasses.dataclass(frozen=True)
class UnitTypes:
    """Where an observation tells its unit's type: a one-hot of `n` numbers from `start` on (negative: from the end)."""

    n: int
    start: int

    def bits(self, obs: Tensor) -> Bool[Tensor, "*batch U"]:
        """The one-hot; nothing is set for a dead unit."""
        first = self.start % obs.shape[-1]
        return obs[..., first : first + self.n] > 0.5

    def check(self, obs: Tensor) -> None:
        """Refuse observations with something else in that place, with the numbers that are there (ConfigError)."""
        first = self.start % obs.shape[-1]
        there = obs[..., first : first + self.n]
        wrong = (there != self.bits(obs)).any(dim=-1) | (there.sum(dim=-1) > 1)
        if wrong.any():
            raise ConfigError(
                f"unit_type_start = {self.start}, n_unit_types = {self.n}: obs[{first}:{first + self.n}] is "
                f"{there[wrong][0].tolist()}, which is neither a one-hot nor all zeros"
            )


class Settings(NamedTuple):
    """All that the agent, controller and learner are told."""

    config: Config
    unit_types: UnitTypes | None  # None: masks belong to agents
    last_action: bool  # whether the network reads the last action too

    @property
    def n_unit_types(self) -> int:
        """0 where masks belong to agents."""
        return self.unit_types.n if self.unit_types else 0


def read_settings(args: SimpleNamespace) -> Settings:
    """Settings from the namespace that the checkout hands to everything it builds.

    A ConfigError names an impossible entry of `k24_args`, and settings of the checkout's own that K-2:4 does not have.
    """
    given = _k24_args(args)
    problems = [
        f"{key} = {getattr(args, key)!r} must be {wanted!r} with K-2:4"
        for key, wanted in DEMANDED.items()
        if getattr(args, key, wanted) != wanted
    ]
    if problems:
        raise ConfigError("; ".join(problems))
    unit_types = _unit_types(args, given)
    own = {key: value for key, value in given.items() if key not in TYPE_KEYS}
    return Settings(build_config(_their_settings(args) | own), unit_types, bool(args.obs_last_action))


def _k24_args(args: SimpleNamespace) -> dict[str, Any]:
    """The entries of `k24_args` that are not null, all names checked."""
    given = getattr(args, "k24_args", None) or {}
    for key in given:
        if key not in KEYS:
            wrong = f"{key} is a setting of its own here, give {key} itself" if hasattr(args, key) else ""
            raise ConfigError(f"k24_args.{key} = {given[key]!r}: {wrong or unknown('key', key, KEYS)}")
    return {key: value for key, value in given.items() if value is not None}


def _their_settings(args: SimpleNamespace) -> dict[str, Any]:
    """What is said by the checkout's own keys."""
    return {
        "task": str(args.env),
        "seed": args.seed,
        "t_max": args.t_max,
        "device": str(args.device),
        "learner": "nq" if args.learner == "k24_nq_learner" else "q",
        "td_lambda": getattr(args, "td_lambda", Config.td_lambda),
        "mask_per": "type" if args.agent == "k24_type" else "agent",
        "hidden_dim": args.hidden_dim if hasattr(args, "hidden_dim") else args.rnn_hidden_dim,
        "mixer": args.mixer or "none",
        "lr": args.lr,
        "lr_final": args.lr,  # theirs is constant
        "grad_norm_clip": args.grad_norm_clip,
        "td_loss": "mse",
        "gamma": args.gamma,
        "batch_size": args.batch_size,
        "buffer_size": args.buffer_size,
        "n_envs": args.batch_size_run,
        **_target_update(args),
        **({"agent_id": True} if args.obs_agent_id else {}),  # else as the method has it
    }


def _target_update(args: SimpleNamespace) -> dict[str, Any]:
    """epymarl counts updates, and takes a number up to 1 for a share; pymarl2 counts episodes."""
    if not hasattr(args, "target_update_interval_or_tau"):
        interval = args.target_update_interval / args.batch_size_run
    elif (interval := args.target_update_interval_or_tau) <= 1:
        return {"target_update": "polyak", "polyak": interval}
    return {"target_update": "hard", "target_update_interval": math.ceil(interval)}


def _unit_types(args: SimpleNamespace, given: Mapping[str, Any]) -> UnitTypes | None:
    """Where the observations tell the unit type, which matters to agent "k24_type" alone."""
    if args.agent != "k24_type":
        if any(key in given for key in TYPE_KEYS):
            raise ConfigError(f"{', '.join(TYPE_KEYS)} of k24_args are for agent = 'k24_type', not {args.agent!r}")
        return None
    for key in TYPE_KEYS:
        if type(given.get(key)) is not int or (key == "n_unit_types" and given[key] < 1):
            raise ConfigError(f"k24_args.{key} = {given.get(key)!r} must be a whole number (of types, at least 1)")
    return UnitTypes(n=given["n_unit_types"], start=given["unit_type_start"])


def env_spec(scheme: Mapping[str, Any], args: SimpleNamespace, settings: Settings) -> EnvSpec:
    """Sizes of the task, as a learner needs them; a unit type outside the observation is a ConfigError."""
    obs_dim = int(np.prod(scheme["obs"]["vshape"]))
    types = settings.unit_types
    if types and not (-obs_dim <= types.start < obs_dim and types.start % obs_dim + types.n <= obs_dim):
        where = f"unit_type_start = {types.start}, n_unit_types = {types.n}"
        raise ConfigError(f"{where} is not inside an observation of {obs_dim} numbers")
    return EnvSpec(
        n_envs=args.batch_size_run,
        n_agents=args.n_agents,
        obs_dims=(obs_dim + args.n_actions * settings.last_action,) * args.n_agents,
        n_actions=(args.n_actions,) * args.n_agents,
        state_dim=int(np.prod(args.state_shape)),
        episode_limit=1,  # any: the checkout's runner and buffer know it, a learner does not ask
        n_unit_types=settings.n_unit_types,
    )
