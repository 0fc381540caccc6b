"""Acting with a frozen team on an NVIDIA GPU: 2:4 calls per mask or one dense batched product, whichever is faster.

A step is captured once as a CUDA graph (torch.cuda.graph), because at the sizes of this field the host is expected to
need ten times as long as the kernels (no GPU was measured yet). 2:4 matrices are torch's own semi-structured tensors:
https://docs.pytorch.org/docs/stable/sparse.html#sparse-semi-structured-tensors.
"""

import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from k24lab.errors import ConfigError, unknown
from k24lab.inference.actor import Apply, batched, team_step, with_gains
from k24lab.inference.costs import KERNEL_TILE, kernel_shape
from k24lab.inference.freeze import FrozenTeam, Own
from k24lab.ops.acting import GATES

Call = Callable[[], object]
Layers = Mapping[str, tuple[Float[Tensor, "M rows columns"], Float[Tensor, "Mb rows"]]]  # matrices and biases
IMPLEMENTATIONS = ("auto", "dense", "sparse")
DEVICE = "cuda"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MIN_CAPABILITY = (8, 0)  # Ampere is the first generation with sparse tensor cores.
DENSE_ROWS = 8  # torch pads 16-bit activations to a multiple of this.
WARM_UP = 5  # The first calls choose kernels, set up plans and allocate memory; a graph is captured after them.
TRIALS = 30  # Each implementation is timed this many times to choose the fastest.
CUTLASS_TILE = 64  # torch's CUTLASS kernels need multiples of 32 rows and 64 columns; every output is an input too.


def sparse24_available() -> tuple[bool, str]:
    """Whether 2:4 kernels can run here, and a line that says what is missing, or the device."""
    if not torch.cuda.is_available():
        return False, f"no 2:4 on a GPU here: torch {torch.__version__} sees no CUDA device"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if torch.version.hip is not None or capability < MIN_CAPABILITY:
        needed = "NVIDIA sparse tensor cores (compute capability 8.0 or later)"
        return False, f"no 2:4 on a GPU here: {name} has no {needed}"
    if not torch.backends.cusparselt.is_available():
        return False, f"no 2:4 on a GPU here: {name} needs cuSPARSELt, which this torch lacks"
    return True, name


def pack_for_gpu(weight: Float[Tensor, "out in"], batch: int) -> Tensor:
    """torch's 2:4 tensor of a padded weight; cuSPARSELt tries its algorithms for `batch` rows and keeps the fastest.

    It tries them once for each shape, because the masks of a layer have the same.
    """
    with warnings.catch_warnings():  # torch warns that these functions are prototypes
        warnings.simplefilter("ignore")
        packed: Any = SparseSemiStructuredTensorCUSPARSELT.from_dense(weight.contiguous())
        rows = -(-batch // DENSE_ROWS) * DENSE_ROWS  # padded as F.linear pads them
        case = (*weight.shape, rows, weight.dtype)
        if case not in _algorithms:
            x = weight.new_zeros(rows, weight.shape[1])
            _algorithms[case] = torch._cslt_sparse_mm_search(packed.packed, x.t(), transpose_result=True)
        packed.alg_id_cusparselt = _algorithms[case]
    return packed


_algorithms: dict[tuple[Any, ...], int] = {}


def pack_for_cutlass(weight: Float[Tensor, "out in"]) -> Tensor:
    """torch's 2:4 tensor of a weight padded to CUTLASS_TILE; its kernels exist for compute capability 8.x only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SparseSemiStructuredTensorCUTLASS.from_dense(weight.contiguous())


def capture(call: Call) -> Call:
    """Capture a CUDA graph of a call; what is returned replays it."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def gpu_time(call: Call) -> float:
    """Microseconds between events around a call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def padded_layers(team: FrozenTeam, tile: int = KERNEL_TILE) -> Layers:
    """`team.common()` with zeros up to what 2:4 kernels accept: every layer's output stays the next one's input."""
    layers = {}
    for name, (weight, bias) in team.common().items():
        gates = GATES.get(name, 1)
        out, inputs = weight.shape[1] // gates, weight.shape[2]
        rows, columns = kernel_shape(out, inputs, tile)
        grown = F.pad(weight.unflatten(1, (gates, out)), (0, columns - inputs, 0, rows - out)).flatten(1, 2)
        layers[name] = grown, _padded(bias, gates, rows)
    return layers


def padded_gains(team: FrozenTeam, tile: int = KERNEL_TILE) -> dict[str, Own]:
    """`team.gains()` with zeros in the same places."""
    padded = {}
    for name, (gain, own_bias) in team.gains().items():
        gates = GATES.get(name, 1)
        rows, _ = kernel_shape(gain.shape[1] // gates, 1, tile)
        padded[name] = _padded(gain, gates, rows), _padded(own_bias, gates, rows)
    return padded


def moved(
    team: FrozenTeam, device: str, kind: torch.dtype, tile: int = KERNEL_TILE
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Own]]:
    """`padded_layers` and `padded_gains` on a device, in the dtype of the products."""
    each = padded_layers(team, tile), padded_gains(team, tile)
    layers, gains = ({name: (a.to(device, kind), b.to(device, kind)) for name, (a, b) in x.items()} for x in each)
    return layers, gains


def _padded(each: Float[Tensor, "K out"], gates: int, rows: int) -> Float[Tensor, "K rows"]:
    parts = each.unflatten(1, (gates, -1))
    return F.pad(parts, (0, rows - parts.shape[2])).flatten(1)


def sparse_calls(
    layers: Layers,
    masked: Iterable[str],
    pack: Callable[[Tensor], Tensor],
    gains: Mapping[str, Own] | None = None,
    grouped: bool = False,
) -> Apply:
    """A call of the 2:4 kernel for each mask; what is not masked is one product for all. Then gains.

    With `grouped` the matrices of all masks stand one below the other in one: a single call computes every input under
    every mask, and what belongs together is kept. For few small masks a call costs more than these products.
    """
    packed, dense = {}, {name: weight for name, (weight, _) in layers.items()}
    biases = {name: bias for name, (_, bias) in layers.items()}
    many = {name for name, weight in dense.items() if len(weight) > 1}
    for name in masked:
        weight = dense.pop(name)
        packed[name] = [pack(each) for each in (weight.flatten(0, 1).unsqueeze(0) if grouped else weight)]

    def apply(name: str, x: Tensor) -> Tensor:
        bias = biases[name]
        if name in many and grouped:
            blocks = F.linear(x.flatten(0, 1), packed[name][0]).reshape(*x.shape[:2], len(x), -1)  # [K, B, K, out]
            return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous() + bias.unsqueeze(1)
        if name in many:
            own = bias.expand(len(x), -1)
            return torch.stack([F.linear(*parts) for parts in zip(x, packed[name], own, strict=True)])
        # One matrix for all networks: one call.
        y = F.linear(x.flatten(0, 1), packed[name][0] if name in packed else dense[name][0], bias[0])
        y = y.unflatten(0, x.shape[:2])
        return with_gains(y, gains[name]) if gains and name in gains else y

    return apply


class GPUActor:
    """Q-values of a team for B games, step by step, in one replayed CUDA graph.

    `batch` is B. Implementations are `sparse` (2:4 calls), `dense` (one batched product) and `auto`: the faster one
    here, measured. Raises ConfigError without a GPU of compute capability 8.0 or later.
    """

    def __init__(self, team: FrozenTeam, batch: int, dtype: str = "float16", implementation: str = "auto"):
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", dtype, DTYPES))
        if implementation not in IMPLEMENTATIONS:
            raise ConfigError(unknown("implementation", implementation, IMPLEMENTATIONS))
        available, found = sparse24_available()
        if not available:
            raise ConfigError(found)
        layers, gains = moved(team, DEVICE, DTYPES[dtype])
        first, _ = layers["fc1"]
        self.team = team
        self._x = first.new_zeros(team.n_masks, batch, first.shape[2])
        self._hidden = first.new_zeros(team.n_masks, batch, first.shape[1])
        self._q_values: dict[str, Tensor] = {}
        replays: dict[str, Call] = {}
        if implementation != "sparse":
            replays["dense"] = self._captured("dense", batched(layers, gains))
        if implementation != "dense":
            masked = [name for name, layer in team.layers.items() if layer.patterns is not None]
            rows = batch * (team.n_masks if team.one_matrix else 1)
            sparse = sparse_calls(layers, masked, lambda weight: pack_for_gpu(weight, rows), gains)
            replays["sparse"] = self._captured("sparse", sparse)
        self.implementation = _fastest(replays) if implementation == "auto" else implementation
        self.replay = replays[self.implementation]  # a step on the inputs of the last one
        self.reset()

    @torch.inference_mode()
    def _captured(self, name: str, apply: Apply) -> Call:
        def step() -> None:
            self._q_values[name], after = team_step(apply, self._x, self._hidden)
            self._hidden.copy_(after)

        return capture(step)

    def reset(self) -> None:
        """Forget: the next step is the first of new games."""
        self._hidden.zero_()

    @torch.inference_mode()
    def q_values(self, inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B A"]:
        """One time step of B games, on the GPU; the result is overwritten by the next step."""
        wanted = (*self._x.shape[:2], self.team.input_dim)
        if inputs.shape != wanted:
            raise ValueError(f"inputs {tuple(inputs.shape)}, expected {wanted}: masks, games and inputs")
        self._x[..., : inputs.shape[2]] = inputs
        self.replay()
        return self._q_values[self.implementation][..., : self.team.n_actions]


def _fastest(calls: Mapping[str, Call]) -> str:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TRIALS):  # interleaved, so that clocks and heat favour none
        for name, call in calls.items():
            times[name].append(gpu_time(call))
    return min(times, key=lambda name: statistics.median(times[name]))
