"""Acting with a frozen team on an NVIDIA GPU: 2:4 calls per mask or one dense batched product, whichever is faster.

API: torch.sparse.to_sparse_semi_structured, torch.cuda.graph. A step is captured once, so that host time, which is ten
times that of the kernels at the sizes of this field, is paid once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from k24lab.bench.gpu import _backend, gpu_time, median_interleaved, pack_for_gpu, sparse24_available
from k24lab.errors import ConfigError, unknown
from k24lab.inference.costs import kernel_shape
from k24lab.inference.freeze import FrozenTeam
from k24lab.inference.packing import check_24, check_padding
from k24lab.inference.team_step import Apply, batched, team_step
from k24lab.ops.acting import GATES

FORMS = ("auto", "dense", "sparse")
TRIALS = 30  # of each form, to choose by
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PaddedLayer:
    """Matrices [M or 1, rows, columns] and their bias, padded so that every layer's output is the next one's input."""

    weight: Float[Tensor, "M rows columns"]
    bias: Float[Tensor, " rows"]
    sparse: bool


def padded_layers(team: FrozenTeam, backend: str) -> dict[str, PaddedLayer]:
    """All layers with zeros up to what 2:4 kernels accept; the gates of the GRU begin at multiples of the same.

    Raises:
        ConfigError: a backend without such kernels, a folded matrix that is not 2:4, or absurd padding.
    """
    layers = {}
    for name, layer in team.layers.items():
        weight, gates = layer.folded(), GATES.get(name, 1)
        if layer.patterns is not None:
            check_24(weight, name)
        out, inputs = weight.shape[1] // gates, weight.shape[2]
        # A hidden size that suits rows and columns alike, whichever of the two a layer has it as.
        rows = _common(out, backend) if name != "fc4" else kernel_shape(out, inputs, backend)[0]
        columns = _common(inputs, backend) if name != "fc1" else kernel_shape(out, inputs, backend)[1]
        grown = F.pad(weight.unflatten(1, (gates, out)), (0, columns - inputs, 0, rows - out)).flatten(1, 2)
        bias = F.pad(layer.bias.unflatten(0, (gates, out)), (0, rows - out)).flatten()
        layers[name] = PaddedLayer(grown, bias, layer.patterns is not None)
    n_weights = sum(layer.weight.numel() for layer in team.layers.values())
    check_padding(n_weights, sum(layer.weight[0].numel() for layer in layers.values()), "a team")
    return layers


def _common(size: int, backend: str) -> int:
    return max(kernel_shape(size, size, backend))


def sparse_form(layers: Mapping[str, PaddedLayer], pack: Callable[[Tensor], Tensor]) -> Apply:
    """A call of the 2:4 kernel for each mask; what is not masked is one product for all."""
    packed = {name: [pack(matrix) for matrix in layer.weight] for name, layer in layers.items() if layer.sparse}

    def apply(name: str, x: Tensor) -> Tensor:
        layer = layers[name]
        if name not in packed:
            return F.linear(x, layer.weight[0], layer.bias)
        if len(packed[name]) == 1:  # one mask for all networks: one call
            return F.linear(x.flatten(0, 1), packed[name][0], layer.bias).unflatten(0, x.shape[:2])
        return torch.stack([F.linear(rows, m, layer.bias) for rows, m in zip(x, packed[name], strict=True)])

    return apply


class GPUActor:
    """Q-values of a team for B games, step by step, in one replayed CUDA graph.

    Args:
        team: what acts.
        batch: B.
        dtype: float16 or bfloat16.
        form: `sparse` (2:4 calls), `dense` (one batched product), or `auto`: the faster one here, measured.

    Raises:
        ConfigError: no GPU with 2:4 kernels (compute capability 8.0), or an unknown dtype or form.
    """

    def __init__(self, team: FrozenTeam, batch: int, dtype: str = "float16", form: str = "auto"):
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", dtype, DTYPES))
        if form not in FORMS:
            raise ConfigError(unknown("form", form, FORMS))
        available, reason = sparse24_available()
        if not available:
            raise ConfigError(reason)
        backend = _backend(torch.cuda.get_device_capability())
        assert backend is not None
        layers = {
            name: PaddedLayer(layer.weight.cuda().to(DTYPES[dtype]), layer.bias.cuda().to(DTYPES[dtype]), layer.sparse)
            for name, layer in padded_layers(team, backend).items()
        }
        n = team.n_masks
        like = layers["fc1"].weight
        self.team = team
        self._x = like.new_zeros(n, batch, like.shape[2])
        self._hidden = like.new_zeros(n, batch, like.shape[1])
        self._outputs: dict[str, Tensor] = {}
        forms = {
            "dense": batched({name: (layer.weight, layer.bias) for name, layer in layers.items()}),
            "sparse": sparse_form(layers, lambda w: pack_for_gpu(w, backend, batch)),
        }
        graphs = {name: self._capture(name, apply) for name, apply in forms.items() if form in (name, "auto")}
        self.form = self._faster(graphs) if form == "auto" else form
        self._graph = graphs[self.form]
        self.reset()

    @torch.inference_mode()
    def _capture(self, name: str, apply: Apply) -> torch.cuda.CUDAGraph:
        for _ in range(3):  # choose kernels and set up plans outside the graph
            team_step(apply, self._x, self._hidden)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs[name], after = team_step(apply, self._x, self._hidden)
            self._hidden.copy_(after)
        return graph

    def _faster(self, graphs: Mapping[str, torch.cuda.CUDAGraph]) -> str:
        dense, sparse = median_interleaved(graphs["dense"].replay, graphs["sparse"].replay, gpu_time, TRIALS)
        return "sparse" if sparse < dense else "dense"

    def replay(self) -> None:
        """The step on the inputs that are there."""
        self._graph.replay()

    def reset(self) -> None:
        """Forget: the next step is the first of new games."""
        self._hidden.zero_()

    @torch.inference_mode()
    def q_values(self, inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B A"]:
        """One time step of B games, on the GPU; the result is overwritten by the next step.

        Raises:
            ValueError: inputs of another shape than this actor was made for.
        """
        wanted = (*self._x.shape[:2], self.team.input_dim)
        if inputs.shape != wanted:
            raise ValueError(f"inputs {tuple(inputs.shape)}, expected {wanted}: masks, games and inputs")
        self._x[..., : inputs.shape[2]] = inputs
        self.replay()
        return self._outputs[self.form][..., : self.team.n_actions]
