"""One time step of a whole team in one call (`act.c`): for acting, where torch would wait for its own calls."""

import ctypes
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from k24lab.kernels.ops import _call

LANES, FOUR, WORD, TILE = 8, 4, 8, 4  # as in act.c
LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
GATES = {"rnn_input": 3, "rnn_hidden": 3}  # parts of a matrix that begin at a full block


class NotSparse(ValueError):
    """A matrix with more than two values in a group of four; `place` is its network, row and group."""

    def __init__(self, place: tuple[int, int, int]):
        super().__init__(f"network {place[0]}, row {place[1]}, group {place[2]}: more than two of four weights")
        self.place = place


class Matrix(NamedTuple):
    """Matrices of one layer as the kernel reads them, padded to full blocks; `words` None: dense."""

    values: Float[Tensor, "K blocks groups kept 8"]
    words: Int[Tensor, "K blocks words 8"] | None
    bias: Float[Tensor, "Kb rows"]


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "words", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "per_values", "per_words", "per_bias")),
    ]


def pack_matrix(
    weight: Float[Tensor, "K out in"], bias: Float[Tensor, "Kb out"], gates: int = 1, sparse: bool = True
) -> Matrix:
    """Pack the matrices of a layer.

    Args:
        weight: one of each network, or one for all.
        bias: likewise.
        gates: parts of the rows that begin at a full block each: 3 for the matrices of a GRU.
        sparse: False keeps every weight.

    Raises:
        NotSparse: a group of four inputs with more than two values.
    """
    (k, rows, inputs), per = weight.shape, weight.shape[1] // gates
    blocks, groups = gates * -(-per // LANES), -(-inputs // FOUR)
    padded = F.pad(bias.reshape(-1, gates, per), (0, blocks * LANES // gates - per)).flatten(1)
    values = weight.new_zeros(k, blocks, groups, 2 if sparse else FOUR, LANES)
    sizes = (k, gates, per, inputs, weight.contiguous(), values)
    if not sparse:
        _call("k24_act_pack_dense", *sizes)
        return Matrix(values, None, padded)
    words = torch.zeros(k, blocks, -(-groups // WORD), LANES, dtype=torch.int32)
    bad = ctypes.c_int64()
    if _call("k24_act_pack", *sizes, words, ctypes.byref(bad)):
        row, group = divmod(bad.value, groups)
        raise NotSparse((*divmod(row, rows), group))
    return Matrix(values, words, padded)


def _stride(part: Tensor | None) -> int:
    """From network to network; 0 where one serves all."""
    return 0 if part is None or len(part) == 1 else part[0].numel()


def _described(matrix: Matrix) -> _Matrix:
    values, words, bias = matrix
    addresses = (values.data_ptr(), None if words is None else words.data_ptr(), bias.data_ptr())
    return _Matrix(*addresses, bias.shape[1], values.shape[2], _stride(values), _stride(words), _stride(bias))


def linear(matrix: Matrix, x: Float[Tensor, "K B in"], relu: bool = False) -> Float[Tensor, "K B rows"]:
    """`W x + b` or its positive part, padded rows included."""
    columns = matrix.values.shape[2] * FOUR
    x = F.pad(x, (0, columns - x.shape[2])).contiguous()
    y = x.new_empty(*x.shape[:2], matrix.bias.shape[1])
    _call("k24_act_linear", len(x), x.shape[1], ctypes.byref(_described(matrix)), x, int(relu), y)
    return y


class TeamStep:
    """Acts for K networks; the hidden state [K, B, H] is padded to a multiple of eight and changed in place."""

    def __init__(self, matrices: Mapping[str, Matrix], inputs: int, n_actions: int):
        self._matrices = [matrices[name] for name in LAYERS]  # the kernel only has their addresses
        self._layers = (_Matrix * len(LAYERS))(*map(_described, self._matrices))
        self.inputs, self.n_actions, self.hidden_rows = inputs, n_actions, matrices["fc1"].bias.shape[1]
        padded_inputs, last = matrices["fc1"].values.shape[2] * FOUR, matrices["fc4"].bias.shape[1]
        self._scratch = torch.empty(TILE * (padded_inputs + 8 * self.hidden_rows + last))

    def initial_hidden(self, n_networks: int, batch: int) -> Float[Tensor, "K B H"]:
        """Zeros."""
        return torch.zeros(n_networks, batch, self.hidden_rows)

    def __call__(self, x: Float[Tensor, "K B in"], hidden: Float[Tensor, "K B H"]) -> Float[Tensor, "K B A"]:
        """Q-values; `hidden` becomes the next one."""
        assert x.shape[2] == self.inputs and hidden.shape == (*x.shape[:2], self.hidden_rows) and hidden.is_contiguous()
        q_values = x.new_empty(*x.shape[:2], self.n_actions)
        sizes = (*x.shape, self.n_actions)
        _call("k24_act_step", *sizes, ctypes.byref(self._layers), x.contiguous(), hidden, q_values, self._scratch)
        return q_values
