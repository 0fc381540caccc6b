"""`torch.nn.GRU` and `torch.nn.GRUCell` with masked layers: one set of weights, and a 2:4 mask for each agent."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.core.config import MaskConfig
from k24lab.core.layers import SemiStructuredLinear24, full_precision
from k24lab.errors import InputError
from k24lab.ops.gru import batched_gru


def _gates(
    n_inputs: int, hidden_size: int, n_masks: int, bias: bool, config: MaskConfig | None
) -> SemiStructuredLinear24:
    """One of the two matrices of a GRU, with the gates in torch's order: r, z, n."""
    return SemiStructuredLinear24(n_inputs, 3 * hidden_size, n_masks, bias, config=config)


class MaskedGRUCell(nn.Module):
    """`torch.nn.GRUCell` for M masks: inputs [M, B, in] and states [M, B, hidden].

    The masks of both matrices are those of any `SemiStructuredLinear24`. In training mode they are drawn anew at every
    call, so unroll time steps in a block of `k24lab.drawn_masks`.

    Args:
        input_size: as of `torch.nn.GRUCell`.
        hidden_size: as of `torch.nn.GRUCell`.
        n_masks: M.
        bias: as of `torch.nn.GRUCell`.
        config: how masks are scored, drawn and annealed.

    Examples:
        >>> import torch, k24lab
        >>> cell, h = k24lab.MaskedGRUCell(8, 16, n_masks=3), torch.zeros(3, 10, 16)
        >>> with k24lab.drawn_masks(cell):
        ...     for x in torch.randn(5, 3, 10, 8):
        ...         h = cell(x, h)
        >>> h.shape
        torch.Size([3, 10, 16])
    """

    def __init__(
        self, input_size: int, hidden_size: int, n_masks: int, bias: bool = True, *, config: MaskConfig | None = None
    ):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.input_gates = _gates(input_size, hidden_size, n_masks, bias, config)
        self.hidden_gates = _gates(hidden_size, hidden_size, n_masks, bias, config)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """The next state.

        Args:
            x: [M, B, in], or [M, in] without a batch.
            h: [M, B, hidden] or [M, hidden]; None: zeros.
        """
        gate_x, size = self.input_gates(x), self.hidden_size
        if h is None:
            h = x.new_zeros(*x.shape[:-1], size)
        if h.shape != (*x.shape[:-1], size):
            raise InputError(f"h of shape {tuple(h.shape)}, expected {(*x.shape[:-1], size)}")
        gate_h = self.hidden_gates(h)
        r, z = torch.sigmoid(gate_x[..., : 2 * size] + gate_h[..., : 2 * size]).split(size, dim=-1)
        n = torch.tanh(gate_x[..., 2 * size :] + r * gate_h[..., 2 * size :])
        return n + z * (h - n)


class MaskedGRU(nn.Module):
    """`torch.nn.GRU` for M masks: inputs [M, T, B, in], or [M, B, T, in] with batch_first.

    States are [M, layers, B, hidden]. One call uses one draw of masks for all time steps.

    Args:
        input_size: as of `torch.nn.GRU`.
        hidden_size: as of `torch.nn.GRU`.
        n_masks: M.
        num_layers: as of `torch.nn.GRU`.
        bias: as of `torch.nn.GRU`.
        batch_first: as of `torch.nn.GRU`.
        config: how masks are scored, drawn and annealed.

    Examples:
        >>> import torch, k24lab
        >>> rnn = k24lab.MaskedGRU(8, 16, n_masks=3, batch_first=True)
        >>> y, h = rnn(torch.randn(3, 10, 5, 8))
        >>> y.shape, h.shape
        (torch.Size([3, 10, 5, 16]), torch.Size([3, 1, 10, 16]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        n_masks: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        config: MaskConfig | None = None,
    ):
        super().__init__()
        if num_layers < 1:
            raise InputError(f"num_layers = {num_layers!r} must be at least 1")
        self.input_size, self.hidden_size, self.n_masks = input_size, hidden_size, n_masks
        self.num_layers, self.batch_first = num_layers, batch_first
        inputs = [input_size] + [hidden_size] * (num_layers - 1)
        self.input_gates = nn.ModuleList([_gates(size, hidden_size, n_masks, bias, config) for size in inputs])
        self.hidden_gates = nn.ModuleList([_gates(hidden_size, hidden_size, n_masks, bias, config) for _ in inputs])

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States of the last layer at all time steps, and of all layers after the last one.

        Args:
            x: [M, T, B, in] or with batch_first [M, B, T, in]; [M, T, in] without a batch.
            h: [M, layers, B, hidden], or [M, layers, hidden] without a batch; None: zeros.
        """
        batched = x.dim() == 4
        self._check(x)
        if not batched:
            x = x.unsqueeze(2)
        elif self.batch_first:
            x = x.transpose(1, 2)
        h = self._initial(h, x, batched)
        last = []
        for k in range(self.num_layers):
            x = self._run(self.input_gates[k], self.hidden_gates[k], x, h[:, k])
            last.append(x[:, -1])
        states = torch.stack(last, dim=1)
        if not batched:
            return x.squeeze(2), states.squeeze(2)
        return (x.transpose(1, 2) if self.batch_first else x), states

    @staticmethod
    def _run(
        input_gates: nn.Module, hidden_gates: nn.Module, x: Float[Tensor, "M T B in"], h: Float[Tensor, "M B H"]
    ) -> Float[Tensor, "M T B H"]:
        """One layer. The recurrence has the precision of its weights, also under autocast."""
        assert isinstance(hidden_gates, SemiStructuredLinear24)
        gate_x, weight = input_gates(x), hidden_gates.weight * hidden_gates.mask()
        gate_x, h = (tensor.to(weight.dtype) for tensor in (gate_x.permute(0, 3, 1, 2).contiguous(), h.mT))
        with full_precision(weight):
            bias = hidden_gates.bias.unsqueeze(0)
            y = batched_gru(gate_x, h.contiguous(), weight, bias).permute(0, 2, 3, 1)
        hidden_gates.observe(y.detach().flatten(1, 2))  # these are its inputs, one time step later
        return y

    def _check(self, x: Tensor) -> None:
        m, size, shape = self.n_masks, self.input_size, tuple(x.shape)
        if x.dim() not in (3, 4) or shape[0] != m or shape[-1] != size or 0 in shape[1:-1]:
            wanted = f"({m}, B, T, {size})" if self.batch_first else f"({m}, T, B, {size})"
            raise InputError(f"x of shape {shape}, expected {wanted}, or ({m}, T, {size}) without a batch")

    def _initial(self, h: Tensor | None, x: Float[Tensor, "M T B in"], batched: bool) -> Float[Tensor, "M L B H"]:
        batch = (x.shape[2],) if batched else ()
        shape = (self.n_masks, self.num_layers, *batch, self.hidden_size)
        if h is None:
            h = x.new_zeros(shape)
        if h.shape != shape:
            raise InputError(f"h of shape {tuple(h.shape)}, expected {shape}")
        return h if batched else h.unsqueeze(2)
