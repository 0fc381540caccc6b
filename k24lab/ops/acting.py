"""One time step of a whole team in one call (`act.c`): for acting, where torch would wait for its own calls."""

import ctypes
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from k24lab.ops.calls import call
from k24lab.ops.library import library

LANES, FOUR, WORD, TILE = 8, 4, 8, 4  # as in act.c
LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
GATES = {"rnn_input": 3, "rnn_hidden": 3}  # parts of a matrix that begin at a full block


class NotSparse(ValueError):
    """A matrix with more than two values in a group of four; `place` is its network, row and group."""

    def __init__(self, place: tuple[int, int, int]):
        super().__init__(f"network {place[0]}, row {place[1]}, group {place[2]}: more than two of four weights")
        self.place = place


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "words", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "per_values", "per_words", "per_bias")),
        *((name, ctypes.c_void_p) for name in ("gain", "own_bias")),
    ]


def _function(name: str, arguments: str) -> Callable[..., None]:
    """A kernel with the types of its arguments (i: whole number, p: address) declared: a call costs half as much."""
    function = getattr(library(), name)
    function.argtypes = [ctypes.c_int64 if kind == "i" else ctypes.c_void_p for kind in arguments]
    function.restype = None
    return function


class PackedLinear:
    """`W x + b` of K networks for few inputs at a time, the matrices packed as the kernel reads them.

    Args:
        weight: one matrix of each network, or one for all.
        bias: likewise.
        gates: parts of the rows that begin at a full block each: 3 for the matrices of a GRU.
        sparse: False keeps every weight, dropped ones too.
        own: a gain and a bias of each agent for each row, of one matrix for all agents (only for `TeamStep`).

    Raises:
        NotSparse: a group of four inputs with more than two values.
    """

    def __init__(
        self,
        weight: Float[Tensor, "K out in"],
        bias: Float[Tensor, "Kb out"],
        gates: int = 1,
        sparse: bool = True,
        own: tuple[Float[Tensor, "N out"], Float[Tensor, "N out"]] | None = None,
    ):
        (k, rows, inputs), per = weight.shape, weight.shape[1] // gates
        if weight.dtype != torch.float32 or bias.dtype != torch.float32 or bias.shape not in ((1, rows), (k, rows)):
            raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must fit, in float32")
        blocks, groups = gates * -(-per // LANES), -(-inputs // FOUR)
        self.inputs, self.columns, self.rows = inputs, groups * FOUR, blocks * LANES  # the last two are padded sizes
        # Of this many networks there are matrices and biases: one serves any number.
        self.most_networks = min([n for n in (len(weight), len(bias)) if n > 1], default=2**62)
        # Held here: the kernel only has their addresses.
        each = (bias, *own) if own else (bias,)
        padded = [F.pad(x.reshape(-1, gates, per), (0, self.rows // gates - per)).flatten(1).contiguous() for x in each]
        self.bias, self.own = padded[0], padded[1:]
        self.values = weight.new_zeros(k, blocks, groups, 2 if sparse else FOUR, LANES)
        self.words = weight.new_zeros(k, blocks, -(-groups // WORD), LANES, dtype=torch.int32) if sparse else None
        sizes = (k, gates, per, inputs, weight.contiguous(), self.values)
        bad = ctypes.c_int64()
        if self.words is None:
            call("k24_act_pack_dense", *sizes)
        elif call("k24_act_pack", *sizes, self.words, ctypes.byref(bad)):
            row, group = divmod(bad.value, groups)
            raise NotSparse((*divmod(row, rows), group))
        parts = (self.values, self.words, self.bias)
        addresses = (None if part is None else part.data_ptr() for part in parts)
        strides = (0 if part is None or len(part) == 1 else part[0].numel() for part in parts)  # 0: one serves all
        self.matrix = _Matrix(*addresses, self.rows, groups, *strides, *(x.data_ptr() for x in self.own))
        self._call, self._address = _function("k24_act_linear", "iippip"), ctypes.addressof(self.matrix)
        self._seen: tuple[torch.Size, Tensor | None] = torch.Size(), None  # the last input's shape and its `out`

    def __call__(
        self, x: Float[Tensor, "K B in"], relu: bool = False, out: Float[Tensor, "K B rows"] | None = None
    ) -> Float[Tensor, "K B rows"]:
        """The product or its positive part, padded rows included, in `out` if given (new memory costs 1-2 us)."""
        x = x.contiguous() if self.inputs == self.columns else F.pad(x, (0, self.columns - self.inputs))
        shape, (seen_shape, seen_out) = x.shape, self._seen
        if out is None or out is not seen_out or shape != seen_shape or x.dtype is not torch.float32:
            out = self._checked(x, out)
        self._call(shape[0], shape[1], self._address, x.data_ptr(), relu, out.data_ptr())
        return out

    def _checked(self, x: Tensor, out: Tensor | None) -> Tensor:
        """`out`, or new memory, if all fits; the same shapes and `out` are not looked at again (1 us of 10)."""
        networks, batch, inputs = x.shape
        if self.own:
            raise ValueError("a layer with gains belongs to a TeamStep: alone it does not know whose rows it has")
        if inputs != self.columns or networks > self.most_networks or x.dtype != torch.float32:
            raise ValueError(f"x {tuple(x.shape)} in {x.dtype} does not fit {self.inputs} inputs in float32")
        if out is None:
            return x.new_empty(networks, batch, self.rows)
        expected = (networks, batch, self.rows)
        if out.shape != expected or not out.is_contiguous() or out.dtype != torch.float32:
            raise ValueError(f"out {tuple(out.shape)} in {out.dtype}, expected {expected} in float32, contiguous")
        self._seen = x.shape, out
        return out


class TeamStep:
    """Acts for K networks; the hidden state [K, B, H] is padded to a multiple of eight and changed in place."""

    def __init__(self, layers: Mapping[str, PackedLinear], n_actions: int):
        self._most_networks = min(layer.most_networks for layer in layers.values())
        self.n_agents = max((len(layer.own[0]) for layer in layers.values() if layer.own), default=0)  # with gains
        self._held = dict(layers)  # the kernel only has their addresses
        self._layers = (_Matrix * len(LAYERS))(*(layers[name].matrix for name in LAYERS))
        first, last = layers["fc1"], layers["fc4"]
        self.inputs, self.n_actions, self.hidden_rows = first.inputs, n_actions, first.rows
        self._scratch = torch.empty(
            TILE * (first.columns + 8 * first.rows + last.rows), dtype=torch.float32, device="cpu"
        )
        self._call, self._address = _function("k24_act_step", "iiiiippppp"), ctypes.addressof(self._layers)

    def initial_hidden(self, n_networks: int, batch: int) -> Float[Tensor, "K B H"]:
        """Zeros."""
        return torch.zeros(n_networks, batch, self.hidden_rows, dtype=torch.float32, device="cpu")

    def __call__(self, x: Float[Tensor, "K B in"], hidden: Float[Tensor, "K B H"]) -> Float[Tensor, "K B A"]:
        """Q-values; `hidden` becomes the next one."""
        x = x.contiguous()
        networks, batch, inputs = x.shape
        if inputs != self.inputs or networks > self._most_networks or x.dtype != torch.float32:
            raise ValueError(f"x {tuple(x.shape)} in {x.dtype} does not fit {self.inputs} inputs in float32")
        if hidden.shape != (networks, batch, self.hidden_rows) or not hidden.is_contiguous():
            raise ValueError(
                f"hidden {tuple(hidden.shape)}, expected {(networks, batch, self.hidden_rows)}, contiguous"
            )
        if self.n_agents and (networks != 1 or batch % self.n_agents):
            raise ValueError(f"x {tuple(x.shape)}: expected one network, and as many rows of each of {self.n_agents}")
        per_agent = batch // self.n_agents if self.n_agents else batch
        q_values = x.new_empty(networks, batch, self.n_actions)
        addresses = (x.data_ptr(), hidden.data_ptr(), q_values.data_ptr(), self._scratch.data_ptr())
        self._call(networks, batch, inputs, self.n_actions, per_agent, self._address, *addresses)
        return q_values


def pack_team(
    weights: Mapping[str, Any], n_actions: int, sparse: Container[str], gains: Mapping[str, Any] | None = None
) -> TeamStep:
    """Pack a team (`k24lab.marl.agent.Weights`); of layers not in `sparse` every weight is kept.

    With `gains`, a gain and a bias of each agent by layer, there is one matrix for all agents, and the rows of all
    agents are the columns of one product.
    """
    gains = gains or {}
    layers = {
        name: PackedLinear(layer.weight, layer.bias, GATES.get(name, 1), name in sparse, gains.get(name))
        for name, layer in weights.items()
    }
    return TeamStep(layers, n_actions)
