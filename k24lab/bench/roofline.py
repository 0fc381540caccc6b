"""A roofline model of 2:4 against dense, and the published measurements to compare it with.

t = launch + host + max(2 * out * in * batch / (efficiency * peak), bytes / (0.8 * bandwidth)), on GPUs in fp16. A
sparse call serves one mask (torch's 2:4 tensors are two-dimensional), a dense call may be one batched matmul over all
agents. The model does not know tile or wave quantisation or the choice of kernels: read its numbers as "at best about".
Every table says in `kind` whether a number is predicted, published or measured.
"""

import statistics
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch

from k24lab.bench.timing import Call, interleaved
from k24lab.errors import ConfigError, unknown
from k24lab.inference.costs import agent_layers, kernel_shape
from k24lab.lab.provenance import cpu_name

CLAIM = (1.5, 1.8)  # the speedup of 2:4 on Ampere that the original design claims


@dataclass(frozen=True)
class Device:
    """Peaks of a GPU (fp16 in, fp32 accumulate) and the shares of them that published matmuls reached.

    `launch`: microseconds that a call takes whatever it computes. One small kernel inside a CUDA graph takes 2-4 us
    (assumed; NVIDIA blog "Getting Started with CUDA Graphs": 3.4 us a kernel); ratios for small layers hardly depend
    on it.
    """

    name: str
    dense_tflops: float
    sparse_tflops: float  # dense-equivalent, as vendors count it
    bandwidth: float  # GB/s
    dense_efficiency: float
    sparse_efficiency: float
    source: str
    efficiency_source: str
    bandwidth_efficiency: float = 0.8  # share of the peak that a streaming kernel reaches (assumed)
    launch: float = 3.0
    itemsize: int = 2  # bytes of a number
    packed_ratio: float = 9 / 16  # bytes of a 2:4 weight over dense: 2 of 4 values and 4 bits of indices per group


DEVICES = {
    device.name: device
    for device in (
        Device("A100", 312.0, 624.0, 2039.0, 0.97, 0.776, source="NVIDIA A100 80GB SXM datasheet",
               efficiency_source="cutlass#408, 16384^3: 302 TFLOP/s dense, 484 sparse"),
        Device("H100", 989.0, 1979.0, 3350.0, 0.79, 0.45, source="NVIDIA H100 SXM datasheet",
               efficiency_source="pytorch#177866, 10240 -> 3072, batch 3072: 0.248 ms dense, 0.216 ms sparse"),
        Device("RTX 3090", 71.0, 142.0, 936.0, 1.0, 0.92, source="NVIDIA GA102 whitepaper, fp32 accumulate",
               efficiency_source="pytorch/ao#174, RTX 3060, 10240^3: 27 dense, 47 sparse of 25.5 and 51 TFLOP/s"),
        Device("Jetson AGX Orin", 42.5, 85.0, 205.0, 0.97, 0.776, source="NVIDIA technical brief, 64 GB module",
               efficiency_source="as A100 (assumed: no published matmul found)"),
    )
}  # fmt: skip

# Microseconds of host time of one (dense, sparse) call. torch's 2:4 tensor subclass costs 120-190 us (pytorch#111339:
# 196 us in all for 4096^2, batch 1); a dense F.linear about 10 us (assumed). One call at a time: nothing is hidden
# behind a queue of others.
HOST_TIME = {"graph": (0.0, 0.0), "eager": (10.0, 155.0)}


def layer_times(
    device: Device, out_features: int, in_features: int, batch: int, n_agents: int = 1, timing: str = "graph"
) -> tuple[float, float]:
    """Predicted (dense, sparse) microseconds of a layer with a mask and `batch` rows per agent.

    Dense is one (batched) call for all agents; sparse is a call per agent, since torch has no batched 2:4 matmul.

    Raises:
        ConfigError: a size below 1, or unknown `timing`.
    """
    sizes = {"out_features": out_features, "in_features": in_features, "batch": batch, "n_agents": n_agents}
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")
    if timing not in HOST_TIME:
        raise ConfigError(unknown("timing", timing, HOST_TIME))

    def call_time(n_stacked: int, peak: float, packed_ratio: float, host: float) -> float:
        weight_bytes = device.itemsize * out_features * in_features * packed_ratio
        moved = n_stacked * (weight_bytes + device.itemsize * batch * (in_features + out_features))
        compute_us = n_stacked * 2.0 * out_features * in_features * batch / (peak * 1e6)
        memory_us = moved / (device.bandwidth_efficiency * device.bandwidth * 1e3)
        return device.launch + host + max(compute_us, memory_us)

    dense_host, sparse_host = HOST_TIME[timing]
    dense = call_time(n_agents, device.dense_tflops * device.dense_efficiency, 1.0, dense_host)
    sparse = call_time(1, device.sparse_tflops * device.sparse_efficiency, device.packed_ratio, sparse_host)
    return dense, n_agents * sparse


def team_step_times(
    device: Device, layer_sizes: tuple[int, int, int], batch: int, n_agents: int
) -> tuple[float, float]:
    """(dense, sparse) microseconds of all matmuls of one team step inside a CUDA graph, every layer masked.

    `layer_sizes` = (obs_dim, hidden_dim, n_actions). Sparse weights are padded to cuSPARSELt's tiles. Biases and gates
    are left out of both, which flatters sparse.
    """
    dense_us = sparse_us = 0.0
    for layer in agent_layers(*layer_sizes):
        rows, columns = layer.out_features, layer.in_features
        dense_us += layer_times(device, rows, columns, batch, n_agents)[0]
        sparse_us += layer_times(device, *kernel_shape(rows, columns), batch, n_agents)[1]
    return dense_us, sparse_us


def predict_layers(
    device: str | Device, widths: Sequence[int], batches: Sequence[int], n_agents: int = 1, timing: str = "graph"
) -> pd.DataFrame:
    """Square layers of each width at each batch: kind, device, width, batch, n_agents, timing, *_us, speedup."""
    device, rows = find_device(device) if isinstance(device, str) else device, []
    for width, batch in product(widths, batches):
        keys = {"device": device.name, "width": width, "batch": batch, "n_agents": n_agents, "timing": timing}
        rows.append(_prediction(keys, *layer_times(device, width, width, batch, n_agents, timing)))
    return pd.DataFrame(rows)


def predict_steps(
    devices: Sequence[str],
    hidden_dims: Sequence[int],
    n_agents: Sequence[int],
    batch: int = 1,
    obs_dim: int = 21,
    n_actions: int = 5,
) -> pd.DataFrame:
    """Whole team steps, all masked: kind, device, hidden_dim, n_agents, batch, masked, timing, *_us, speedup."""
    rows = []
    for name, hidden_dim, n in product(devices, hidden_dims, n_agents):
        keys = {"device": name, "hidden_dim": hidden_dim, "n_agents": n, "batch": batch}
        times = team_step_times(find_device(name), (obs_dim, hidden_dim, n_actions), batch, n)
        rows.append(_prediction(keys | {"masked": "all", "timing": "graph"}, *times))
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_cpu_device(rounds: int) -> Device:
    """This CPU, measured in float32 on one thread: peak of a product, bandwidth, cost of a call."""
    wide, long, tiny = torch.randn(1024, 1024), torch.randn(8192, 8192), torch.randn(8, 8)
    linear = torch.nn.functional.linear
    calls: dict[str, Call] = {
        "peak": lambda: linear(wide, wide),
        "read": long.sum,
        "call": lambda: linear(tiny[:1], tiny),
    }
    median = {name: statistics.median(times) for name, times in interleaved(calls, rounds).items()}
    tflops = 2 * 1024**3 / median["peak"] / 1e6
    return Device(
        name=f"{cpu_name()}, one thread",
        dense_tflops=tflops,
        sparse_tflops=2 * tflops,
        bandwidth=long.nbytes / median["read"] / 1e3,
        dense_efficiency=1.0,
        sparse_efficiency=1.0,
        source="measured: F.linear 1024³, a sum over 268 MB, F.linear 8²",
        efficiency_source="measured; 2:4 assumed at twice the peak",
        bandwidth_efficiency=1.0,
        launch=median["call"],
        itemsize=4,
        packed_ratio=17 / 32,  # two of four values and 4 bits a group
    )


def find_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ConfigError: it has no entry in `DEVICES`.
    """
    if name not in DEVICES:
        raise ConfigError(unknown("device", name, DEVICES))
    return DEVICES[name]


_TUTORIAL = "PyTorch tutorial, semi_structured_sparse"
# Published speedups. Timing: GPU time of the kernel, or torch as called, eager or compiled. Sizes, where it is one
# layer: rows and columns of the weight, rows of the activations.
PUBLISHED_COLUMNS = ("case", "device", "timing", "speedup", "source", "out_features", "in_features", "batch")
PUBLISHED = (
    ("4096², batch 1", "not stated", "eager", 0.11, "pytorch#111339", 4096, 4096, 1),
    ("10240→3072, batch 64", "not stated", "eager", 0.59, "pytorch/ao#1460", 3072, 10240, 64),
    ("10240→3072, batch 512", "not stated", "eager", 0.68, "pytorch/ao#1460", 3072, 10240, 512),
    ("10240→3072, batch 1280", "not stated", "eager", 1.35, "pytorch/ao#1460", 3072, 10240, 1280),
    ("10240→3072, batch 3072", "A100", "eager", 1.38, _TUTORIAL, 3072, 10240, 3072),
    ("3072→768, batch 3072", "A100", "eager", 1.48, "pytorch#90119", 768, 3072, 3072),
    ("3072→768, batch 196608", "A100", "eager", 1.66, "pytorch#90119", 768, 3072, 196608),
    ("4096³", "A100", "kernel", 1.11, "CUDALibrarySamples#57", 4096, 4096, 4096),
    ("16384³, as reported", "A100", "kernel", 0.80, "cutlass#408", 16384, 16384, 16384),
    ("16384³, tuned by NVIDIA", "A100", "kernel", 1.60, "cutlass#408", 16384, 16384, 16384),
    ("8192³", "H100", "kernel", 1.21, "CUDALibrarySamples#203 (1.20-1.22)", 8192, 8192, 8192),
    ("10240→3072, batch 3072", "H100", "eager", 0.41, "pytorch#177866, no plan cache", 3072, 10240, 3072),
    ("10240→3072, plan cached", "H100", "eager", 1.15, "pytorch#177866, plan cache", 3072, 10240, 3072),
    ("10240→4096, batch 4096", "RTX 3060", "eager", 1.97, "pytorch/ao#174", 4096, 10240, 4096),
    ("10240³", "RTX 3060", "eager", 1.72, "pytorch/ao#174", 10240, 10240, 10240),
    ("BERT-base, batch 4", "A100", "eager", 0.71, _TUTORIAL, None, None, None),
    ("BERT-base, batch 16", "A100", "eager", 1.23, _TUTORIAL, None, None, None),
    ("BERT-base, batch 64", "A100", "eager", 1.22, _TUTORIAL, None, None, None),
    ("BERT-base, batch 256", "A100", "eager", 1.14, _TUTORIAL, None, None, None),
    ("BERT-base, batch 4", "A100", "compiled", 1.02, _TUTORIAL, None, None, None),
    ("BERT-base, batch 16", "A100", "compiled", 1.18, _TUTORIAL, None, None, None),
    ("BERT-base, batch 64", "A100", "compiled", 1.13, _TUTORIAL, None, None, None),
    ("BERT-base, batch 256", "A100", "compiled", 1.12, _TUTORIAL, None, None, None),
    ("gpt-fast, one token", "not stated", "compiled", 1.10, "pytorch#115077 (114 / 104 tokens per second)",
     None, None, None),
    ("SAM ViT-h, MLP", "A100", "compiled", 1.10, "torchao README", None, None, None),
)  # fmt: skip


def published_points() -> pd.DataFrame:
    """`PUBLISHED`, slowest first: kind ("published"), key (a letter), case, device, timing, speedup, source, sizes."""
    table = pd.DataFrame(PUBLISHED, columns=PUBLISHED_COLUMNS).sort_values("speedup", kind="stable", ignore_index=True)
    table.insert(0, "kind", "published")
    table.insert(1, "key", list(string.ascii_letters[: len(table)]))
    return table


def _prediction(keys: Mapping[str, object], dense_us: float, sparse_us: float) -> dict[str, object]:
    times = {"dense_us": dense_us, "sparse_us": sparse_us, "speedup": dense_us / sparse_us}
    return {"kind": "predicted", **keys, **times}
