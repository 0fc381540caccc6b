"""From an ordinary network to one with a 2:4 mask for each agent, and back to the ordinary network of one agent."""

import copy
import numbers
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.modules import masked_layers
from k24lab.core.recurrent import MaskedGRU, MaskedGRUCell
from k24lab.errors import InputError, unknown


def convert(
    model: nn.Module, n_masks: int, *, config: MaskConfig | None = None, skip: Collection[str] = ()
) -> nn.Module:
    """A copy of a network whose `nn.Linear`, `nn.GRU` and `nn.GRUCell` have the same weights and a mask for each agent.

    The copy takes inputs with a leading dimension of `n_masks`: [M, B, in] instead of [B, in] for linear layers and
    GRU cells, [M, T, B, in] and states [M, layers, B, hidden] for a GRU. All other modules, and subclasses of these
    three, stay as they are and must allow for the additional dimension. Batch normalisation does not, and could run
    over the wrong dimension without an error, so it is refused.

    Args:
        model: is not changed.
        n_masks: M, one for each agent (or type of agents).
        config: how masks are scored, drawn and annealed.
        skip: qualified names of submodules that stay as they are with all that is in them; a string is one name.

    Returns:
        The copy, on the device and in the dtype of the model.

    Raises:
        InputError: no module to convert, a name that is not there, n_masks that is no whole number or below 1, batch
            normalisation, a GRU that is bidirectional or has dropout, or a module with hooks, which would be lost.

    Examples:
        >>> import torch, k24lab
        >>> from torch import nn
        >>> team = k24lab.convert(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), n_masks=3)
        >>> team(torch.randn(3, 10, 8)).shape
        torch.Size([3, 10, 2])
    """
    skip = [skip] if isinstance(skip, str) else skip
    names = dict(model.named_modules(remove_duplicate=False))
    if absent := [name for name in skip if name not in names]:
        raise InputError(unknown("submodule", absent[0], names.keys() - {""}))
    skipped = {id(module) for name in skip for module in names[name].modules()}

    def masked(name: str, module: nn.Module) -> nn.Module | None:
        return module if id(names[name]) in skipped else _masked(name, module, n_masks, config)

    converted = replace_modules(copy.deepcopy(model), masked)
    if not masked_layers(converted):
        raise InputError(f"{type(model).__name__} has no nn.Linear, nn.GRU or nn.GRUCell to convert")
    for module in converted.modules():
        _call_its_layers(module)
    return converted


def _call_its_layers(module: nn.Module) -> None:
    """Make a transformer call its linear layers: in inference torch's fast path reads their weights past the masks."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False


def extract(model: nn.Module, mask: int) -> nn.Module:
    """One agent's network: a copy with ordinary layers, whose weights are exactly 2:4 under the argmax mask.

    Masked layers become `nn.Linear`, and masked GRUs `nn.GRU` and `nn.GRUCell`, so that `torch.onnx.export`,
    `torch.compile` and `torch.sparse.to_sparse_semi_structured` take the copy. Its inputs have no leading dimension of
    masks. For a run of `k24lab.train` use `k24lab.freeze_run`.

    Args:
        model: is not changed.
        mask: index of the agent; layers with a single mask give it to every agent.

    Examples:
        >>> import torch, k24lab
        >>> model = k24lab.SemiStructuredLinear24(8, 4, n_masks=3).eval()
        >>> one, x = k24lab.extract(model, 2), torch.randn(3, 10, 8)
        >>> print(one, torch.allclose(one(x[2]), model(x)[2], atol=1e-6))
        Linear(in_features=8, out_features=4, bias=True) True
    """
    layers = masked_layers(model).values()
    if not layers:
        raise InputError(f"{type(model).__name__} has no masked layer")
    most = max(layer.n_masks for layer in layers)
    if not isinstance(mask, numbers.Integral) or isinstance(mask, bool) or not 0 <= mask < most:
        raise InputError(f"mask = {mask!r}, expected 0 to {most - 1}: there are {most} masks")
    fewer = [layer.n_masks for layer in layers if layer.n_masks not in (1, most)]
    if fewer:
        raise InputError(f"layers with {most} and with {fewer[0]} masks: one agent's network needs one number of masks")
    return replace_modules(copy.deepcopy(model), lambda _, module: _dense(module, mask))


def replace_modules(model: nn.Module, new: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Put `new(name, module)` in the place of each module of a network, from the outside in; None: look inside.

    A module that stands in several places stays one.
    """
    done: dict[int, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) not in done:
            result = new(name, module)
            if result is None:
                result = module
                for key, child in module._modules.items():
                    if child is not None:
                        module._modules[key] = visit(f"{name}.{key}" if name else key, child)
            done[id(module)] = result
        return done[id(module)]

    return visit("", model)


def _masked(name: str, module: nn.Module, n_masks: int, config: MaskConfig | None) -> nn.Module | None:
    """The masked layer with the parameters of an ordinary one."""
    if type(module) in (nn.Linear, nn.GRUCell, nn.GRU):
        _check_hooks(name, module)
    if type(module) is nn.Linear:
        layer = SemiStructuredLinear24(
            module.in_features, module.out_features, n_masks, module.bias is not None, config=config
        )
        return _holding(layer, module, [(layer, "weight", "bias")])
    if type(module) is nn.GRUCell:
        cell = MaskedGRUCell(module.input_size, module.hidden_size, n_masks, module.bias, config=config)
        gates = [(cell.input_gates, "weight_ih", "bias_ih"), (cell.hidden_gates, "weight_hh", "bias_hh")]
        return _holding(cell, module, gates)
    if type(module) is nn.GRU:
        _check_gru(name, module)
        sizes = (module.input_size, module.hidden_size, n_masks, module.num_layers)
        rnn = MaskedGRU(*sizes, module.bias, module.batch_first, config=config)
        return _holding(rnn, module, _gru_gates(rnn))
    if isinstance(module, _BatchNorm):
        raise InputError(
            f"{type(module).__name__} {name!r} would normalise the wrong dimension of inputs that begin with agents: "
            f"use nn.LayerNorm; skip=({name!r},) leaves it as it is"
        )
    return None


Gates = list[tuple[Any, str, str]]  # a masked layer, and how an ordinary module calls its weight and bias


def _gru_gates(rnn: MaskedGRU) -> Gates:
    sides = ((rnn.input_gates, "ih"), (rnn.hidden_gates, "hh"))
    return [(gates, f"weight_{s}_l{k}", f"bias_{s}_l{k}") for side, s in sides for k, gates in enumerate(side)]


def _check_hooks(name: str, module: nn.Module) -> None:
    """Refuse hooks: the masked module would not have them."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    if any(getattr(module, kind) for kind in kinds):
        raise InputError(
            f"{type(module).__name__} {name!r} has hooks, which its masked layer would not have: remove them, or "
            f"register them after the conversion; skip=({name!r},) leaves it dense"
        )


def _check_gru(name: str, module: nn.GRU) -> None:
    """Refuse what `MaskedGRU` is not."""
    cannot = {
        "bidirectional = True": module.bidirectional,
        f"dropout = {module.dropout}": module.dropout > 0 and module.num_layers > 1,
    }
    if found := ", ".join(text for text, is_so in cannot.items() if is_so):
        raise InputError(f"a GRU with {found} cannot be converted; skip=({name!r},) leaves it dense")


def _holding(masked: nn.Module, module: nn.Module, gates: Gates) -> nn.Module:
    """The masked module with the parameters, device, dtype and mode of an ordinary one."""
    weight = getattr(module, gates[0][1])
    masked.to(weight.device, weight.dtype).train(module.training)
    for layer, weight_name, bias_name in gates:
        layer.weight = getattr(module, weight_name)  # the parameter itself: tied weights stay tied
        if isinstance(bias := getattr(module, bias_name, None), nn.Parameter):
            layer.bias = bias
    return masked


def _dense(module: nn.Module, mask: int) -> nn.Module | None:
    """The ordinary layer that holds what one mask keeps."""
    if isinstance(module, SemiStructuredLinear24):
        linear = nn.Linear(module.in_features, module.out_features, module.has_bias)
        return _fill(linear, module, [(module, "weight", "bias")], mask)
    if isinstance(module, MaskedGRUCell):
        cell = nn.GRUCell(module.input_size, module.hidden_size, module.input_gates.has_bias)
        gates = [(module.input_gates, "weight_ih", "bias_ih"), (module.hidden_gates, "weight_hh", "bias_hh")]
        return _fill(cell, module, gates, mask)
    if isinstance(module, MaskedGRU):
        gates = _gru_gates(module)
        sizes = (module.input_size, module.hidden_size, module.num_layers)
        rnn = nn.GRU(*sizes, bias=gates[0][0].has_bias, batch_first=module.batch_first)
        return _fill(rnn, module, gates, mask)
    return None


@torch.no_grad()
def _fill(dense: nn.Module, masked: nn.Module, gates: Gates, mask: int) -> nn.Module:
    """The ordinary module with the parameters of a masked one under one of its masks."""
    like: Tensor = gates[0][0].weight
    dense.to(like.device, like.dtype).train(masked.training)
    for layer, weight_name, bias_name in gates:
        kept = layer.argmax_mask()[mask if layer.n_masks > 1 else 0]
        getattr(dense, weight_name).copy_(layer.weight * kept)
        if layer.has_bias:
            getattr(dense, bias_name).copy_(layer.bias)
    return dense
