"""Dense against 2:4 linear layers, measured on an NVIDIA GPU through torch's own 2:4 tensors.

API: https://docs.pytorch.org/docs/stable/sparse.html#sparse-semi-structured-tensors (to_sparse_semi_structured).
"""

import datetime
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

from k24lab.core.patterns import GROUP_SIZE, N_PATTERNS, masks_from_index
from k24lab.errors import ConfigError, unknown
from k24lab.inference.costs import kernel_shape

Call = Callable[[], object]
MIN_CAPABILITY = (8, 0)  # Ampere, the first generation with sparse tensor cores
TIMINGS = ("graph", "eager")
CALLS_PER_GRAPH = 20  # so that starting the graph costs little per call
WARM_UP = 5  # calls before timing: kernel choice, plan set-up, allocator
REPEATS = 100
DENSE_ROWS = 8  # torch pads 16-bit activations to a multiple of this


def sparse24_available() -> tuple[bool, str]:
    """Whether 2:4 kernels can run here, and the reason: what is missing, or the device and backend found."""
    if not torch.cuda.is_available():
        return False, f"no 2:4 measurement here: torch {torch.__version__} sees no CUDA device"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if torch.version.hip is not None or capability < MIN_CAPABILITY:
        return False, f"no 2:4 measurement here: {name} has no NVIDIA sparse tensor cores (compute capability 8.0)"
    if (backend := _backend(capability)) is None:
        return False, f"no 2:4 measurement here: {name} needs cuSPARSELt, which this torch lacks"
    return True, f"{name}, {backend}"


def measure_linear(
    shapes: Sequence[tuple[int, int, int]], n_agents: int = 1, timing: str = "graph", repeats: int = REPEATS
) -> pd.DataFrame:
    """Median times of fp16 layers, given as (out_features, in_features, batch), with a mask per agent.

    Dense is one (batched) matmul over all agents; sparse one call per agent, its weights padded to the kernel's tiles.
    `graph`: GPU time of a call inside a CUDA graph. `eager`: wall time of one call until the GPU is done, host time
    included. Dense and sparse take turns, so that clocks and heat favour neither.

    Returns:
        kind ("measured"), device, out_features, in_features, batch, n_agents, timing, dense_us, sparse_us, speedup,
        backend, torch, cuda, date: one row per shape.

    Raises:
        ConfigError: no GPU with 2:4 kernels, unknown `timing`, or `n_agents` or `repeats` below 1.
    """
    if timing not in TIMINGS:
        raise ConfigError(unknown("timing", timing, TIMINGS))
    if n_agents < 1 or repeats < 1:
        raise ConfigError(f"n_agents = {n_agents}, repeats = {repeats}: both must be at least 1")
    available, reason = sparse24_available()
    if not available:
        raise ConfigError(reason)
    backend = _backend(torch.cuda.get_device_capability())
    assert backend is not None
    rows = []
    for out_features, in_features, batch in shapes:
        calls = _linear_calls(out_features, in_features, batch, n_agents, backend)
        dense_us, sparse_us = _time_pair(calls, timing, repeats)
        sizes = {"out_features": out_features, "in_features": in_features, "batch": batch, "n_agents": n_agents}
        times = {"timing": timing, "dense_us": dense_us, "sparse_us": sparse_us, "speedup": dense_us / sparse_us}
        rows.append({"kind": "measured", "device": torch.cuda.get_device_name()} | sizes | times)
    today = datetime.date.today().isoformat()
    return pd.DataFrame(rows).assign(backend=backend, torch=torch.__version__, cuda=torch.version.cuda, date=today)


def random_24_weight(out_features: int, in_features: int, generator: torch.Generator) -> Float[Tensor, "out in"]:
    """Normal weights under a random 2:4 mask; `in_features` is a multiple of 4."""
    weight = torch.randn(out_features, in_features, generator=generator)
    index = torch.randint(N_PATTERNS, (out_features, in_features // GROUP_SIZE), generator=generator)
    return weight * masks_from_index(index, weight).reshape(out_features, in_features)


def median_interleaved(first: Call, second: Call, timer: Callable[[Call], float], repeats: int) -> tuple[float, float]:
    """Medians of `timer` over both calls, taken in turn, each starting half of the turns."""
    times: tuple[list[float], list[float]] = ([], [])
    calls = (first, second)
    for turn in range(repeats):
        for which in (turn % 2, 1 - turn % 2):
            times[which].append(timer(calls[which]))
    return statistics.median(times[0]), statistics.median(times[1])


def _backend(capability: tuple[int, int]) -> str | None:
    """The library torch should use: cuSPARSELt where built in, else CUTLASS, whose kernels exist for 8.x only."""
    if torch.backends.cusparselt.is_available():
        return "cusparselt"
    return "cutlass" if capability[0] == MIN_CAPABILITY[0] else None


def _linear_calls(out_features: int, in_features: int, batch: int, n_agents: int, backend: str) -> tuple[Call, Call]:
    """(dense, sparse) calls on the same weights and inputs, checked to agree."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = kernel_shape(out_features, in_features, backend)
    weight = torch.stack([random_24_weight(rows, columns, generator) for _ in range(n_agents)]).cuda().half()
    x = torch.randn(n_agents, batch, columns, generator=generator).cuda().half()
    # The dense side does not need the kernel's padding, so it is spared it.
    dense_weight = weight[:, :out_features, :in_features].transpose(1, 2).contiguous()
    dense_x = x[..., :in_features].contiguous()
    packed = [pack_for_gpu(w, backend, batch) for w in weight]

    def dense() -> Tensor:
        return torch.bmm(dense_x, dense_weight) if n_agents > 1 else torch.mm(dense_x[0], dense_weight[0])

    def sparse() -> list[Tensor]:
        return [F.linear(x_agent, w) for x_agent, w in zip(x, packed, strict=True)]

    for x_agent, w, y in zip(x, weight, sparse(), strict=True):
        torch.testing.assert_close(y, x_agent @ w.T, rtol=1e-2, atol=1e-1)  # fp16 sums in another order
    return dense, sparse


def pack_for_gpu(weight: Float[Tensor, "out in"], backend: str, batch: int) -> Tensor:
    """torch's 2:4 tensor of a padded weight; cuSPARSELt tries its algorithms for `batch` rows and keeps the fastest."""
    packed = _pack(weight, backend)
    if backend == "cusparselt":
        x = weight.new_zeros(-(-batch // DENSE_ROWS) * DENSE_ROWS, weight.shape[1])  # padded as F.linear pads it
        with warnings.catch_warnings():  # torch means to replace it
            warnings.simplefilter("ignore")
            packed.alg_id_cusparselt = torch._cslt_sparse_mm_search(packed.packed, x.t(), transpose_result=True)
    return packed


def _pack(weight: Float[Tensor, "out in"], backend: str) -> Any:
    before = SparseSemiStructuredTensor._FORCE_CUTLASS
    SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "cutlass"
    try:
        with warnings.catch_warnings():  # torch warns once that the API is a prototype
            warnings.simplefilter("ignore", UserWarning)
            return to_sparse_semi_structured(weight.contiguous())
    finally:
        SparseSemiStructuredTensor._FORCE_CUTLASS = before


@torch.inference_mode()
def _time_pair(calls: tuple[Call, Call], timing: str, repeats: int) -> tuple[float, float]:
    """Median microseconds of (dense, sparse)."""
    for call in calls * WARM_UP:
        call()
    torch.cuda.synchronize()
    if timing == "eager":
        return median_interleaved(*calls, _wall_time, repeats)
    graphs = [_capture(call) for call in calls]
    dense, sparse = median_interleaved(graphs[0].replay, graphs[1].replay, gpu_time, repeats)
    return dense / CALLS_PER_GRAPH, sparse / CALLS_PER_GRAPH


def _capture(call: Call) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS_PER_GRAPH):
            call()
    return graph


def _wall_time(call: Call) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6


def gpu_time(call: Call) -> float:
    """Microseconds between events around a call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3
