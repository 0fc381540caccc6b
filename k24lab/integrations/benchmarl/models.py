"""Models for BenchMARL's experiments whose agents share one network and see it through 2:4 masks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from benchmarl.models import GruConfig, MlpConfig
from benchmarl.models.common import Model, ModelConfig
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded
from torchrl.objectives.common import add_random_module

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.modules import drawn_masks, freeze_masks
from k24lab.core.recurrent import MaskedGRUCell
from k24lab.errors import ConfigError
from k24lab.methods.k24 import OTHERS_SETTINGS

# Settings of masks that do nothing here: of other methods, of our own learner, of unit types and of resets.
UNUSED = OTHERS_SETTINGS.union(
    "acting_masks target_masks mask_rnn mask_per agent_id reset_trigger reset_target reset_interval reset_ratio "
    "reset_threshold reset_ema_share kl_threshold lr_factor_ramp".split()
)

add_random_module(SemiStructuredLinear24)  # each critic of an ensemble draws masks of its own


class K24Model(Model):
    """What both models have: vectors of each agent in, a vector of each agent out, and masked layers in between.

    A pass that learns draws masks, once for all its layers and time steps. Acting, evaluation, targets and all other
    passes without a gradient use the argmax masks. BenchMARL leaves its models in training mode for good, so it is
    autograd that says whether a pass learns.
    """

    def __init__(self, masks: Literal["learned", "random"], mask_config: dict[str, Any], **theirs: Any):
        super().__init__(**theirs)
        self.learns = masks == "learned"
        config = MaskConfig(**mask_config)
        # Scores of fixed masks must not depend on what is trained.
        self.mask_config = config if self.learns else replace(config, score_weight_power=0.0, score_ema_power=0.0)
        self.follows_training = False  # K24Callback sets it
        self.observations = list(self.input_spec.keys(True, True))
        self.input_features = sum(spec.shape[-1] for spec in self.input_spec.values(True, True))

    def _perform_checks(self) -> None:
        super()._perform_checks()
        for key, spec in self.input_spec.items(True, True):
            if len(spec.shape) != 2:
                raise ConfigError(f"input {key!r} has shape {tuple(spec.shape)}, expected (n_agents, features)")

    def perceptron(self, in_features: int, cells: Sequence[int], activation: Any, options: Any) -> nn.Sequential:
        """Masked layers, the last one included, with activations in between."""
        layers: list[nn.Module] = []
        for size, next_size in pairwise([in_features, *cells, self.output_leaf_spec.shape[-1]]):
            linear = SemiStructuredLinear24(size, next_size, self.n_agents, config=self.mask_config)
            layers += [linear, activation(**(options or {}))]
        return nn.Sequential(*layers[:-1])

    def finish(self) -> None:
        """To be called when all layers are there."""
        if not self.learns:
            freeze_masks(self)
        self.to(self.device)

    def agents_first(self, tensordict: TensorDictBase) -> Tensor:
        """All observations side by side, [N, *batch, F]."""
        x = torch.cat([tensordict.get(key) for key in self.observations], dim=-1)
        return x.movedim(-2, 0)

    def _forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        learning = self.learns and torch.is_grad_enabled()
        if learning and not self.follows_training:
            raise ConfigError("learned masks need K24Callback() among the callbacks of the experiment")
        self.train(learning)
        with drawn_masks(self) if learning else nullcontext():
            y = self.outputs(tensordict)
        tensordict.set(self.out_key, y.movedim(0, -2))
        return tensordict

    def outputs(self, tensordict: TensorDictBase) -> Tensor:
        """What the agents put out, [N, *batch, F]."""
        raise NotImplementedError


class K24Mlp(K24Model):
    """A multi-layer perceptron."""

    def __init__(self, num_cells: Sequence[int], activation_class: Any, activation_kwargs: Any, **rest: Any):
        super().__init__(**rest)
        self.mlp = self.perceptron(self.input_features, num_cells, activation_class, activation_kwargs)
        self.finish()

    def outputs(self, tensordict: TensorDictBase) -> Tensor:
        """As of `K24Model`."""
        return self.mlp(self.agents_first(tensordict))


class K24Gru(K24Model):
    """A GRU, and a multi-layer perceptron behind it."""

    def __init__(
        self,
        hidden_size: int,
        mlp_num_cells: Sequence[int],
        mlp_activation_class: Any,
        mlp_activation_kwargs: Any,
        **rest: Any,
    ):
        super().__init__(**rest)
        self.hidden_key = (self.agent_group, hidden_name(self.model_index))
        self.in_keys += ["is_init", self.hidden_key]
        self.hidden_size = hidden_size
        self.gru = MaskedGRUCell(self.input_features, hidden_size, self.n_agents, config=self.mask_config)
        self.mlp = self.perceptron(hidden_size, mlp_num_cells, mlp_activation_class, mlp_activation_kwargs)
        self.finish()

    def outputs(self, tensordict: TensorDictBase) -> Tensor:
        """As of `K24Model`. In collection there is a hidden state and one time step, in training neither."""
        x, is_init = self.agents_first(tensordict), tensordict.get("is_init")
        hidden = tensordict.get(self.hidden_key, None)
        if hidden is None:
            return self.mlp(self._unroll(x, is_init))
        hidden = self.gru(x, torch.where(is_init, 0.0, hidden.movedim(-2, 0)))
        tensordict.set(("next", *self.hidden_key), hidden.movedim(0, -2))
        return self.mlp(hidden)

    def _unroll(self, x: Tensor, is_init: Tensor) -> Tensor:
        """States of whole sequences, [N, B, T, H], from x [N, B, T, F]; an episode may begin anywhere."""
        hidden, states = x.new_zeros(*x.shape[:2], self.hidden_size), []
        for x_t, begins in zip(x.unbind(2), is_init.unbind(1), strict=True):
            hidden = self.gru(x_t, torch.where(begins, 0.0, hidden))
            states.append(hidden)
        return torch.stack(states, dim=2)


def hidden_name(model_index: int) -> str:
    """Where collection keeps the state; the underscore keeps it out of the batches for training."""
    return f"_hidden_k24_gru_{model_index}"


@dataclass
class K24ModelConfig(ModelConfig):
    """What both configurations have."""

    masks: Literal["learned", "random"] = "learned"  # random: fixed from the start, to compare with
    mask_config: MaskConfig = field(default_factory=MaskConfig)  # how masks are scored, drawn, annealed and kept apart

    def __post_init__(self) -> None:
        if self.masks not in ("learned", "random"):
            raise ConfigError(f"masks = {self.masks!r} must be 'learned' or 'random'")
        if isinstance(self.mask_config, dict):  # from a file
            self.mask_config = MaskConfig(**self.mask_config)
        for setting in fields(MaskConfig):
            value = getattr(self.mask_config, setting.name)
            if setting.name in UNUSED and value != setting.default:
                raise ConfigError(f"mask_config.{setting.name} = {value!r} has no effect in BenchMARL; leave it out")

    def get_model(self, centralised: bool, share_params: bool, **rest: Any) -> Model:
        """A model with masks; of a centralised one, which pools all agents, BenchMARL's own.

        Raises:
            ConfigError: parameters that agents do not share.
        """
        if centralised:
            dense = self.dense()
            dense.is_critic = self.is_critic
            return dense.get_model(centralised=centralised, share_params=share_params, **rest)
        if not share_params:
            raise ConfigError(
                "agents with K-2:4 masks share their parameters: leave share_policy_params (of the experiment) and "
                "share_param_critic (of the algorithm) at True, or take a model of BenchMARL's own"
            )
        return super().get_model(centralised=centralised, share_params=share_params, **rest)

    def dense(self) -> ModelConfig:
        """BenchMARL's own model of the same size."""
        raise NotImplementedError

    @classmethod
    def get_from_yaml(cls, path: str | None = None) -> K24ModelConfig:
        """From a file, or without one the defaults, which are those of BenchMARL's own model of the kind."""
        return cls() if path is None else super().get_from_yaml(path)


@dataclass
class K24MlpConfig(K24ModelConfig):
    """A multi-layer perceptron, to be used like BenchMARL's `MlpConfig`; every layer has a 2:4 mask for each agent."""

    num_cells: Sequence[int] = (256, 256)
    activation_class: type[nn.Module] = nn.Tanh
    activation_kwargs: dict[str, Any] | None = None

    @staticmethod
    def associated_class() -> type[Model]:
        """The model that this configures."""
        return K24Mlp

    def dense(self) -> ModelConfig:
        """As of `K24ModelConfig`."""
        return MlpConfig(self.num_cells, nn.Linear, self.activation_class, self.activation_kwargs)


@dataclass
class K24GruConfig(K24ModelConfig):
    """A GRU with a perceptron behind it, to be used like BenchMARL's `GruConfig`, with masks in all layers of both."""

    hidden_size: int = 128
    mlp_num_cells: Sequence[int] = (256, 256)
    mlp_activation_class: type[nn.Module] = nn.Tanh
    mlp_activation_kwargs: dict[str, Any] | None = None

    @staticmethod
    def associated_class() -> type[Model]:
        """The model that this configures."""
        return K24Gru

    @property
    def is_rnn(self) -> bool:
        """BenchMARL then trains on sequences, and keeps the hidden state while it collects."""
        return True

    def get_model_state_spec(self, model_index: int = 0) -> Composite:
        """The hidden state of one agent."""
        return Composite({hidden_name(model_index): Unbounded(shape=(self.hidden_size,))})

    def dense(self) -> ModelConfig:
        """As of `K24ModelConfig`."""
        sizes = {"hidden_size": self.hidden_size, "mlp_num_cells": self.mlp_num_cells, "mlp_layer_class": nn.Linear}
        activation = {
            "mlp_activation_class": self.mlp_activation_class,
            "mlp_activation_kwargs": self.mlp_activation_kwargs,
        }
        return GruConfig(n_layers=1, bias=True, dropout=0.0, compile=False, **sizes, **activation)
