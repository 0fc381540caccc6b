"""Acting with a frozen team on an NVIDIA GPU: 2:4 calls per mask or one dense batched product, whichever is faster.

A step is captured once as a CUDA graph (torch.cuda.graph), because at the sizes of this field the host needs ten times
as long as the kernels. 2:4 matrices are torch's own semi-structured tensors:
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
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

from k24lab.errors import ConfigError, unknown
from k24lab.inference.actor import Apply, batched, team_step, with_gains
from k24lab.inference.costs import kernel_shape
from k24lab.inference.freeze import FrozenTeam, Own
from k24lab.ops.acting import GATES

Call = Callable[[], object]
Layers = Mapping[str, tuple[Float[Tensor, "M rows columns"], Float[Tensor, "Mb rows"]]]  # matrices and biases
IMPLEMENTATIONS = ("auto", "dense", "sparse")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MIN_CAPABILITY = (8, 0)  # Ampere, the first generation with sparse tensor cores
DENSE_ROWS = 8  # torch pads 16-bit activations to a multiple of this
WARM_UP = 5  # calls before a graph is captured: choice of kernels, set-up of plans, allocator
TRIALS = 30  # of each implementation, to choose the faster one


def sparse24_available() -> tuple[bool, str]:
    """Whether 2:4 kernels can run here, and a line that says what is missing, or the device."""
    if not torch.cuda.is_available():
        return False, f"no 2:4 on a GPU here: torch {torch.__version__} sees no CUDA device"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if torch.version.hip is not None or capability < MIN_CAPABILITY:
        return False, f"no 2:4 on a GPU here: {name} has no NVIDIA sparse tensor cores (compute capability 8.0)"
    if not torch.backends.cusparselt.is_available():
        return False, f"no 2:4 on a GPU here: {name} needs cuSPARSELt, which this torch lacks"
    return True, name


def pack_for_gpu(weight: Float[Tensor, "out in"], batch: int) -> Tensor:
    """torch's 2:4 tensor of a padded weight; cuSPARSELt tries its algorithms for `batch` rows and keeps the fastest."""
    with warnings.catch_warnings():  # torch warns that these functions are prototypes
        warnings.simplefilter("ignore")
        packed: Any = SparseSemiStructuredTensorCUSPARSELT.from_dense(weight.contiguous())
        x = weight.new_zeros(-(-batch // DENSE_ROWS) * DENSE_ROWS, weight.shape[1])  # padded as F.linear pads it
        packed.alg_id_cusparselt = torch._cslt_sparse_mm_search(packed.packed, x.t(), transpose_result=True)
    return packed


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


def padded_layers(team: FrozenTeam) -> Layers:
    """`team.common()` with zeros up to what 2:4 kernels accept: every layer's output stays the next one's input."""
    layers = {}
    for name, (weight, bias) in team.common().items():
        gates = GATES.get(name, 1)
        out, inputs = weight.shape[1] // gates, weight.shape[2]
        rows, columns = kernel_shape(out, inputs)
        grown = F.pad(weight.unflatten(1, (gates, out)), (0, columns - inputs, 0, rows - out)).flatten(1, 2)
        layers[name] = grown, _padded(bias, gates, rows)
    return layers


def padded_gains(team: FrozenTeam) -> dict[str, Own]:
    """`team.gains()` with zeros in the same places."""
    padded = {}
    for name, (gain, own_bias) in team.gains().items():
        gates = GATES.get(name, 1)
        rows, _ = kernel_shape(gain.shape[1] // gates, 1)
        padded[name] = _padded(gain, gates, rows), _padded(own_bias, gates, rows)
    return padded


def _padded(each: Float[Tensor, "K out"], gates: int, rows: int) -> Float[Tensor, "K rows"]:
    parts = each.unflatten(1, (gates, -1))
    return F.pad(parts, (0, rows - parts.shape[2])).flatten(1)


def sparse_calls(
    layers: Layers, masked: Iterable[str], pack: Callable[[Tensor], Tensor], gains: Mapping[str, Own] | None = None
) -> Apply:
    """A call of the 2:4 kernel for each mask; what is not masked is one product for all. Then gains."""
    packed = {name: [pack(matrix) for matrix in layers[name][0]] for name in masked}

    def apply(name: str, x: Tensor) -> Tensor:
        weight, bias = layers[name]
        if len(weight) > 1:
            own = bias.expand(len(x), -1)
            return torch.stack([F.linear(*parts) for parts in zip(x, packed[name], own, strict=True)])
        # One matrix for all networks: one call.
        y = F.linear(x.flatten(0, 1), packed[name][0] if name in packed else weight[0], bias[0])
        y = y.unflatten(0, x.shape[:2])
        return with_gains(y, gains[name]) if gains and name in gains else y

    return apply


class GPUActor:
    """Q-values of a team for B games, step by step, in one replayed CUDA graph.

    `batch` is B. Implementations are `sparse` (2:4 calls), `dense` (one batched product) and `auto`: the faster one
    here, measured. Without a GPU of compute capability 8.0 it is a ConfigError.
    """

    def __init__(self, team: FrozenTeam, batch: int, dtype: str = "float16", implementation: str = "auto"):
        if dtype not in DTYPES:
            raise ConfigError(unknown("dtype", dtype, DTYPES))
        if implementation not in IMPLEMENTATIONS:
            raise ConfigError(unknown("implementation", implementation, IMPLEMENTATIONS))
        available, found = sparse24_available()
        if not available:
            raise ConfigError(found)
        kind = DTYPES[dtype]
        layers = {name: (w.cuda().to(kind), bias.cuda().to(kind)) for name, (w, bias) in padded_layers(team).items()}
        gains = {name: (g.cuda().to(kind), own.cuda().to(kind)) for name, (g, own) in padded_gains(team).items()}
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
            rows = batch * (team.n_masks if team.one_matrix else 1)  # of one product
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
