"""Masks of any `torch.nn.Module` that contains `SemiStructuredLinear24` layers: anneal, draw, keep apart, freeze."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.core import schedules
from k24lab.core.diversity import PatternOrthogonalityLoss
from k24lab.core.layers import SemiStructuredLinear24, SharedDraw, current_draw, full_precision
from k24lab.core.masks import MaskDraw, draw_masks, groups_per_layer, pin_masks
from k24lab.errors import InputError


def masked_layers(model: nn.Module) -> dict[str, SemiStructuredLinear24]:
    """All masked layers of a module, by their qualified names, in the order of `model.named_modules()`.

    Examples:
        >>> import k24lab
        >>> from torch import nn
        >>> model = k24lab.convert(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)), n_masks=3)
        >>> list(k24lab.masked_layers(model))
        ['0', '2']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, SemiStructuredLinear24)}


def _layers(model: nn.Module) -> list[SemiStructuredLinear24]:
    """The masked layers; that there are none is an error, since a user expects some."""
    layers = list(masked_layers(model).values())
    if not layers:
        name = type(model).__name__
        raise InputError(f"{name} has no SemiStructuredLinear24 layer; k24lab.convert returns a copy that has them")
    return layers


def anneal(model: nn.Module, progress: float) -> None:
    """Set how masks are drawn at a moment of training, in every masked layer of a module; call it before each update.

    Each layer takes its temperature and logit scale from the schedule of its `MaskConfig`: with the defaults the
    temperature falls from 5 to 0.1 over the first 80 % of training. After that share (`anneal_end`) training uses the
    argmax masks, or what the setting `after_anneal` says.

    Args:
        model: any module.
        progress: share of training that is done, from 0 to 1.

    Raises:
        InputError: progress outside [0, 1], or no masked layer.

    Examples:
        >>> import k24lab
        >>> layer = k24lab.SemiStructuredLinear24(8, 4, n_masks=3)
        >>> for step in range(100):
        ...     k24lab.anneal(layer, step / 100)  # then the update
        >>> round(layer.temperature, 3), layer.noise
        (0.1, 'none')
    """
    if not 0 <= progress <= 1:
        raise InputError(f"progress = {progress!r} must be in [0, 1]: the share of training that is done")
    for layer in _layers(model):
        config = layer.config
        settled = config.after_anneal != "drawn" and progress >= config.anneal_end
        layer.temperature = schedules.mask_temperature(config, progress)
        layer.logit_scale = schedules.mask_logit_scale(config, progress)
        layer.noise = "none" if settled else config.noise
        if settled and config.after_anneal == "frozen" and layer.learns_masks:
            _pin(layer)


@contextlib.contextmanager
def drawn_masks(model: nn.Module, generator: torch.Generator | None = None) -> Iterator[MaskDraw]:
    """Draw the masks of all masked layers at once and use them in every forward pass of the block.

    One draw for a whole update, as in the method: every time step of a recurrent network and every minibatch of the
    block see the same masks. It is also faster than a draw in each layer. Gradients reach the masks through one
    backward pass, so open a block for each optimizer step. The running means of activations move once, at the end of
    the block, for layers in training mode.

    Args:
        model: any module whose masked layers have the same number of masks.
        generator: of the random numbers. Two blocks with generators of the same seed draw the same masks, as long as
            the masks' distributions are the same.

    Yields:
        The draw: the masks in the order of `masked_layers`, and the distributions of patterns that they come from.

    Examples:
        >>> import torch, k24lab
        >>> layer = k24lab.SemiStructuredLinear24(8, 4, n_masks=3)
        >>> x = torch.randn(3, 10, 8)
        >>> with k24lab.drawn_masks(layer) as draw:
        ...     bool((layer(x) == layer(x)).all()), tuple(draw.masks[0].shape)
        (True, (3, 4, 8))
    """
    layers = _layers(model)
    draw = _draw(layers, generator)
    before = [layer.shared_draw for layer in layers]
    shared = [SharedDraw(*each) for each in zip(draw.masks, _split(draw.pattern_probs, layers), strict=True)]
    for layer, each in zip(layers, shared, strict=True):
        layer.shared_draw = each
    try:
        yield draw
    finally:
        for layer, outer in zip(layers, before, strict=True):
            layer.shared_draw = outer
    for layer, each in zip(layers, shared, strict=True):
        if each.seen is not None:
            layer.ema_tracker.update_from_sum(*each.seen)


def _draw(layers: Sequence[SemiStructuredLinear24], generator: torch.Generator | None) -> MaskDraw:
    """Masks of all layers, whose running selection frequencies move towards them in training."""
    if len(numbers := sorted({layer.n_masks for layer in layers})) > 1:
        found = ", ".join(map(str, numbers))
        raise InputError(f"the layers have different numbers of masks ({found}): use drawn_masks for each part")
    draw = _draw_alike(layers, generator)
    for layer, mask in zip(layers, draw.masks, strict=True):
        if layer.training and layer.learns_masks:
            layer.count_selection(mask)
    return draw


def _draw_alike(layers: Sequence[SemiStructuredLinear24], generator: torch.Generator | None) -> MaskDraw:
    """One draw for all layers that agree in how masks are drawn; frozen layers, for example, are another group."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for k, layer in enumerate(layers):
        key = (layer.config, layer.temperature, layer.logit_scale, layer.noise, layer.learns_masks)
        alike.setdefault(key, []).append(k)
    if len(alike) == 1:
        return current_draw(layers, generator)
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for chosen in alike.values():
        draw = current_draw([layers[k] for k in chosen], generator)
        sizes = groups_per_layer([layers[k] for k in chosen])
        each = zip(draw.masks, draw.pattern_probs.split(sizes, dim=2), draw.pattern_index.split(sizes, 1), strict=True)
        parts |= zip(chosen, each, strict=True)
    masks, probs, index = zip(*(parts[k] for k in range(len(layers))), strict=True)
    return MaskDraw(list(masks), torch.cat(probs, dim=2), torch.cat(index, dim=1))


def _split(probs: Float[Tensor, "6 M groups"], layers: Sequence[SemiStructuredLinear24]) -> tuple[Tensor, ...]:
    """The distributions of each layer."""
    return probs.split(groups_per_layer(layers), dim=2)


def diversity_loss(model: nn.Module) -> Float[Tensor, ""]:
    """How alike the masks are: the probability that two masks choose the same pattern, mean over pairs and groups.

    1 for masks that are alike and certain, 1/6 for uniform distributions, 0 for masks that share no pattern. Added to
    a loss it pushes the masks apart: through hetero_alpha, and with score_gradient="all" through the weights too. In a
    block of `drawn_masks` it is computed from the distributions of that draw, else from those of the present
    temperature.

    Examples:
        >>> import k24lab
        >>> layer = k24lab.SemiStructuredLinear24(8, 4, n_masks=3)
        >>> loss = k24lab.diversity_loss(layer)
        >>> loss.backward()
        >>> 0 < loss.item() < 1, bool(layer.hetero_alpha.grad.any())
        (True, True)
    """
    layers, orthogonality = _layers(model), PatternOrthogonalityLoss()
    sizes = groups_per_layer(layers)
    losses = [orthogonality(_pattern_probs(layer)) * size for layer, size in zip(layers, sizes, strict=True)]
    return torch.stack(losses).sum() / sum(sizes)


def _pattern_probs(layer: SemiStructuredLinear24) -> Float[Tensor, "6 M groups"]:
    if layer.shared_draw is not None:
        return layer.shared_draw.pattern_probs
    with full_precision(layer.weight), torch.set_grad_enabled(layer.learns_masks and torch.is_grad_enabled()):
        return draw_masks([layer], layer.temperature, layer.logit_scale, "none").pattern_probs


class WeightsKept(NamedTuple):
    """Weights of the masked layers of a module, biases not counted."""

    kept: int  # by each mask
    total: int

    @property
    def share(self) -> float:
        """What each mask keeps: 0.5, and a little more where in_features is no multiple of 4."""
        return self.kept / self.total


def weights_kept(model: nn.Module) -> WeightsKept:
    """Count the weights that each argmax mask keeps of all masked layers.

    Examples:
        >>> import k24lab
        >>> counts = k24lab.weights_kept(k24lab.SemiStructuredLinear24(8, 4, n_masks=3))
        >>> counts.kept, counts.total, counts.share
        (16, 32, 0.5)
    """
    layers = _layers(model)
    kept = sum(int(layer.argmax_mask().sum()) // layer.n_masks for layer in layers)
    return WeightsKept(kept, sum(layer.weight.numel() for layer in layers))


def freeze_masks(model: nn.Module) -> None:
    """Fix the argmax masks of all masked layers for good; weights and biases learn on.

    Right after a model is made these masks are not random: the default score contains |W|, so all agents prefer large
    weights. A model with the `config` of the example starts with random masks, like the method `random24`.
    `requires_grad` is no part of a state_dict: after loading one into a new model, freeze it again to train on.

    Examples:
        >>> import k24lab
        >>> config = k24lab.MaskConfig(score_weight_power=0.0, score_ema_power=0.0)
        >>> layer = k24lab.SemiStructuredLinear24(8, 4, n_masks=3, config=config)
        >>> k24lab.freeze_masks(layer)
        >>> layer.weight.requires_grad, layer.hetero_alpha.requires_grad
        (True, False)
    """
    for layer in _layers(model):
        _pin(layer)


def _pin(layer: SemiStructuredLinear24) -> None:
    with full_precision(layer.weight):
        pin_masks([layer])
