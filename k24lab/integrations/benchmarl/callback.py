"""The callback that lets the masks of BenchMARL's experiments follow the training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from benchmarl.experiment import Callback
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from k24lab.core.diversity import K24DiversityManager
from k24lab.core.modules import anneal, diversity_loss, masked_layers
from k24lab.errors import ConfigError
from k24lab.integrations.benchmarl.models import K24Model


@dataclass
class Network:
    """A network of a loss that has masks which learn."""

    name: str  # as torchrl calls it, for example actor_network
    models: list[K24Model]
    params: TensorDictBase  # what the loss computes with: the models' own, or those of an ensemble
    target: TensorDictBase | None

    def alphas(self) -> list[Tensor]:
        """All mask coefficients."""
        return [value for key, value in self.params.items(True, True) if key[-1] == "hetero_alpha"]

    def is_ensemble(self) -> bool:
        """Whether the loss computes with several copies of the network, whose parameters are stacked."""
        own = {id(layer.hetero_alpha) for model in self.models for layer in masked_layers(model).values()}
        return not own >= {id(alpha) for alpha in self.alphas()}

    def copy_buffers(self) -> None:
        """Give the target network the running activations, which are part of the scores."""
        if self.target is not None:
            for key, value in self.params.items(True, True):
                if not isinstance(value, nn.Parameter):
                    self.target.get(key).data.copy_(value.data)


class Regulariser:
    """Keeps the masks of one network apart: adds the weighted diversity loss to the loss that the network learns from.

    Args:
        network: not an ensemble.
        loss_name: of the loss that the network's optimizer minimises.
    """

    def __init__(self, network: Network, loss_name: str):
        config = network.models[0].mask_config
        self.models, self.loss_name, self.on = network.models, loss_name, config.diversity_coef > 0
        self.manager = K24DiversityManager(config.diversity_coef, config.diversity_history, config.diversity_coef_max)
        self.metrics: dict[str, Tensor] = {}

    def add_to(self, losses: TensorDictBase) -> None:
        """Change the loss; its weight is in proportion to the loss, as in the package's own learner."""
        similarity = torch.stack([diversity_loss(model) for model in self.models]).mean()
        value = losses.get(self.loss_name)
        coef = self.manager.coefficient(abs(value.item()), similarity.item()) if self.on else 0.0
        losses.set(self.loss_name, value + coef * similarity)
        found = {"div_loss": similarity.detach(), "div_coef": torch.as_tensor(coef, device=similarity.device)}
        self.metrics = {f"k24_{name}_{self.loss_name.removeprefix('loss_')}": each for name, each in found.items()}


class K24Callback(Callback):
    """Anneals the masks of all K-2:4 models of an experiment, keeps them apart, and logs both.

    It also does what BenchMARL has no setting for: hetero_alpha learns `alpha_lr_factor` times faster than the weights,
    and target networks get the running activations, which BenchMARL's updates of targets leave out. An experiment
    without K-2:4 models is left as it is.

    Args:
        on_policy_masks: of the losses of PPO. It compares the policy with the one that collected, which had the argmax
            masks; drawn masks add their noise to that ratio.
    """

    def __init__(self, on_policy_masks: Literal["argmax", "drawn"] = "argmax") -> None:
        super().__init__()
        if on_policy_masks not in ("argmax", "drawn"):
            raise ConfigError(f"on_policy_masks = {on_policy_masks!r} must be 'argmax' or 'drawn'")
        self.on_policy_masks = on_policy_masks
        self.networks: dict[str, list[Network]] = {}
        self.regularisers: dict[str, list[Regulariser]] = {}
        self.last_masks: dict[str, list[Tensor]] = {}

    def on_setup(self) -> None:
        """Find the networks with masks, and change their optimizers and losses."""
        if self.experiment.config.collect_with_grad:
            raise ConfigError(
                "collect_with_grad must be False: a pass with a gradient counts as learning, and draws masks"
            )
        for group, loss in self.experiment.losses.items():
            networks = self.networks[group] = list(_networks(loss))
            if not networks:
                continue
            losses = self._quicken(group, networks)
            alone = [network for network in networks if not network.is_ensemble()]
            self.regularisers[group] = [Regulariser(network, losses[network.name]) for network in alone]
            loss.register_forward_hook(partial(self._add_regularisers, group))
        self._anneal(0.0)

    def _quicken(self, group: str, networks: list[Network]) -> dict[str, str]:
        """Give mask coefficients a learning rate of their own; returns the name of the loss of each network."""
        found = {}
        for network in networks:
            factor, alphas = network.models[0].mask_config.alpha_lr_factor, {id(each) for each in network.alphas()}
            for loss_name, optimizer in self.experiment.optimizers[group].items():
                if _quicken(optimizer, alphas, factor):
                    found[network.name] = loss_name
        return found

    def _add_regularisers(self, group: str, loss: LossModule, inputs: Any, losses: TensorDictBase) -> TensorDictBase:
        """A hook behind the forward pass of a loss."""
        for regulariser in self.regularisers[group]:
            regulariser.add_to(losses)
        return losses

    def on_batch_collected(self, batch: TensorDictBase) -> None:
        """Set how masks are drawn in the updates with this batch."""
        frames = self.experiment.total_frames - batch.numel()
        self._anneal(frames / self.experiment.config.get_max_n_frames(self.experiment.on_policy))

    def _anneal(self, progress: float) -> None:
        for networks in self.networks.values():
            for model in (model for network in networks for model in network.models):
                anneal(model, min(progress, 1.0))
                model.follows_training = True
                if self.experiment.on_policy and self.on_policy_masks == "argmax":
                    for layer in masked_layers(model).values():
                        layer.noise = "none"

    def on_train_step(self, batch: TensorDictBase, group: str) -> TensorDictBase | None:
        """After an update: let target networks follow; returns what is logged about it."""
        for network in self.networks[group]:
            network.copy_buffers()
        metrics = {name: each for part in self.regularisers.get(group, []) for name, each in part.metrics.items()}
        return TensorDict(metrics) if metrics else None

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        """After the updates with a batch: log the temperature, and the share of mask entries that have changed."""
        models = [model for part in self.regularisers.get(group, []) for model in part.models]
        layers = [layer for model in models for layer in masked_layers(model).values()]
        if not layers:
            return
        masks = [layer.argmax_mask() for layer in layers]
        metrics = {"temperature": layers[0].temperature}
        if before := self.last_masks.get(group):
            changed = sum((new != old).sum().item() for new, old in zip(masks, before, strict=True))
            metrics["mask_flip_rate"] = changed / sum(mask.numel() for mask in masks)
        self.last_masks[group] = masks
        named = {f"train/{group}/k24_{name}": value for name, value in metrics.items()}
        self.experiment.logger.log(named, step=self.experiment.n_iters_performed)


def _networks(loss: LossModule) -> Iterator[Network]:
    """The networks of a loss that have masks which learn; torchrl keeps a network and its parameters apart."""
    for name, module in vars(loss).items():
        params = loss._modules.get(f"{name}_params")
        if isinstance(module, nn.Module) and params is not None:
            models = [part for part in module.modules() if isinstance(part, K24Model) and part.learns]
            if models:
                yield Network(name, models, params, loss._modules.get(f"target_{name}_params"))


def _quicken(optimizer: torch.optim.Optimizer, alphas: set[int], factor: float) -> bool:
    """Let those parameters of an optimizer learn faster; returns whether it has any."""
    (group,) = optimizer.param_groups[:1]
    chosen = [p for p in group["params"] if id(p) in alphas]
    if chosen:
        group["params"] = [p for p in group["params"] if id(p) not in alphas]
        optimizer.add_param_group({**group, "params": chosen, "lr": group["lr"] * factor})
    return bool(chosen)
