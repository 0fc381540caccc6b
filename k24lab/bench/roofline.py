"""A roofline model of 2:4 against dense on GPUs, and the published measurements to hold it against.

t = launch + host + max(2 * out * in * batch / (efficiency * peak), bytes / (0.8 * bandwidth)), in fp16. A sparse call
serves one mask (torch's 2:4 tensors are two-dimensional), a dense call may be one batched matmul over all agents.
The model knows no tile or wave quantisation and no kernel choice: read its numbers as "at best about". Every table
says in `kind` whether a number is predicted, published or measured.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from k24lab.errors import ConfigError, unknown
from k24lab.inference.costs import agent_layers, kernel_shape

CLAIM = (1.5, 1.8)  # speedup that the design document claims for 2:4 on Ampere


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


@dataclass(frozen=True)
class Overhead:
    """Fixed microseconds of one call on the host."""

    dense_host: float
    sparse_host: float


OVERHEADS = {
    "graph": Overhead(dense_host=0.0, sparse_host=0.0),
    # torch's 2:4 tensor subclass costs 120-190 us of host time a call (pytorch#111339: 196 us in all for 4096^2, batch
    # 1); a dense F.linear about 10 us (assumed). One call at a time: nothing hides behind a queue of others.
    "eager": Overhead(dense_host=10.0, sparse_host=155.0),
}


def call_time(
    device: Device,
    out_features: int,
    in_features: int,
    batch: int,
    *,
    sparse: bool,
    n_stacked: int = 1,
    timing: str = "graph",
) -> float:
    """Predicted microseconds of one matmul call; `n_stacked` weights at once with `batch` rows each (dense only).

    Raises:
        ConfigError: a size below 1, unknown `timing`, or stacked sparse weights (torch has no batched 2:4 matmul).
    """
    _positive(out_features=out_features, in_features=in_features, batch=batch, n_stacked=n_stacked)
    if timing not in OVERHEADS:
        raise ConfigError(unknown("timing", timing, OVERHEADS))
    if sparse and n_stacked > 1:
        raise ConfigError(f"n_stacked = {n_stacked}: one 2:4 call serves one mask; call once per mask")
    overhead = OVERHEADS[timing]
    peak = device.sparse_tflops * device.sparse_efficiency if sparse else device.dense_tflops * device.dense_efficiency
    weight_bytes = device.itemsize * out_features * in_features * (device.packed_ratio if sparse else 1.0)
    moved = n_stacked * (weight_bytes + device.itemsize * batch * (in_features + out_features))
    compute_us = n_stacked * 2.0 * out_features * in_features * batch / (peak * 1e6)
    memory_us = moved / (device.bandwidth_efficiency * device.bandwidth * 1e3)
    return device.launch + (overhead.sparse_host if sparse else overhead.dense_host) + max(compute_us, memory_us)


def layer_times(
    device: Device, out_features: int, in_features: int, batch: int, n_agents: int = 1, timing: str = "graph"
) -> tuple[float, float]:
    """(dense, sparse) microseconds of a layer with a mask and `batch` rows per agent: 1 dense call, n_agents sparse."""
    _positive(n_agents=n_agents)
    dense = call_time(device, out_features, in_features, batch, sparse=False, n_stacked=n_agents, timing=timing)
    return dense, n_agents * call_time(device, out_features, in_features, batch, sparse=True, timing=timing)


def agent_step_times(
    device: Device,
    layer_sizes: tuple[int, int, int],
    batch: int,
    n_agents: int,
    masked: str = "all",
    timing: str = "graph",
) -> tuple[float, float]:
    """(dense, sparse) microseconds of all matmuls of one team step; `layer_sizes` = (obs_dim, hidden_dim, n_actions).

    Masked layers as in `layer_times`, sparse weights padded to cuSPARSELt's tiles; layers without a mask are one dense
    call for the whole team in both. Biases and gates are left out of both, which flatters sparse.

    Raises:
        ConfigError: a size below 1, unknown `masked` (`fc` or `all`) or `timing`.
    """
    if masked not in ("fc", "all"):
        raise ConfigError(unknown("choice of masked layers", masked, ("fc", "all")))
    _positive(batch=batch, n_agents=n_agents)
    dense_us = sparse_us = 0.0
    for layer in agent_layers(*layer_sizes):
        rows, columns = layer.out_features, layer.in_features
        if layer.kind == "gru" and masked == "fc":
            shared = call_time(device, rows, columns, batch * n_agents, sparse=False, timing=timing)
            dense_us, sparse_us = dense_us + shared, sparse_us + shared
        else:
            padded = kernel_shape(rows, columns, "cusparselt")
            dense_us += layer_times(device, rows, columns, batch, n_agents, timing)[0]
            sparse_us += layer_times(device, *padded, batch, n_agents, timing)[1]
    return dense_us, sparse_us


def predict_layers(
    device: str | Device, widths: Sequence[int], batches: Sequence[int], n_agents: int = 1, timing: str = "graph"
) -> pd.DataFrame:
    """Square layers of each width at each batch: kind, device, width, batch, n_agents, timing, *_us, speedup."""
    rows = []
    device = find_device(device) if isinstance(device, str) else device
    for width in widths:
        for batch in batches:
            dense, sparse = layer_times(device, width, width, batch, n_agents, timing)
            keys = {"width": width, "batch": batch, "n_agents": n_agents, "timing": timing}
            rows.append(_prediction(device.name, keys, dense, sparse))
    return pd.DataFrame(rows)


def predict_steps(
    devices: Sequence[str],
    hidden_dims: Sequence[int],
    n_agents: Sequence[int],
    batch: int = 1,
    masked: str = "all",
    timing: str = "graph",
    obs_dim: int = 21,
    n_actions: int = 5,
) -> pd.DataFrame:
    """Whole agent steps: kind, device, hidden_dim, n_agents, batch, masked, timing, *_us, speedup."""
    rows = []
    for device in devices:
        for hidden_dim in hidden_dims:
            for n in n_agents:
                sizes = (obs_dim, hidden_dim, n_actions)
                dense, sparse = agent_step_times(find_device(device), sizes, batch, n, masked, timing)
                keys = {"hidden_dim": hidden_dim, "n_agents": n, "batch": batch, "masked": masked, "timing": timing}
                rows.append(_prediction(device, keys, dense, sparse))
    return pd.DataFrame(rows)


def find_device(name: str) -> Device:
    """The device of that name.

    Raises:
        ConfigError: it has no entry in `DEVICES`.
    """
    if name not in DEVICES:
        raise ConfigError(unknown("device", name, DEVICES))
    return DEVICES[name]


@dataclass(frozen=True)
class Published:
    """One published speedup; rows of the activation matrix in `batch`, sizes None where it is not one layer."""

    case: str
    device: str
    timing: str  # "kernel" (GPU time), "eager" or "compiled" (torch, as called)
    speedup: float
    source: str
    out_features: int | None = None
    in_features: int | None = None
    batch: int | None = None


_TUTORIAL = "PyTorch tutorial, semi_structured_sparse"
PUBLISHED = (
    Published("4096², batch 1", "not stated", "eager", 0.11, "pytorch#111339", 4096, 4096, 1),
    Published("10240→3072, batch 64", "not stated", "eager", 0.59, "pytorch/ao#1460", 3072, 10240, 64),
    Published("10240→3072, batch 512", "not stated", "eager", 0.68, "pytorch/ao#1460", 3072, 10240, 512),
    Published("10240→3072, batch 1280", "not stated", "eager", 1.35, "pytorch/ao#1460", 3072, 10240, 1280),
    Published("10240→3072, batch 3072", "A100", "eager", 1.38, _TUTORIAL, 3072, 10240, 3072),
    Published("3072→768, batch 3072", "A100", "eager", 1.48, "pytorch#90119", 768, 3072, 3072),
    Published("3072→768, batch 196608", "A100", "eager", 1.66, "pytorch#90119", 768, 3072, 196608),
    Published("4096³", "A100", "kernel", 1.11, "CUDALibrarySamples#57", 4096, 4096, 4096),
    Published("16384³, as reported", "A100", "kernel", 0.80, "cutlass#408", 16384, 16384, 16384),
    Published("16384³, tuned by NVIDIA", "A100", "kernel", 1.60, "cutlass#408", 16384, 16384, 16384),
    Published("8192³", "H100", "kernel", 1.21, "CUDALibrarySamples#203 (1.20-1.22)", 8192, 8192, 8192),
    Published("10240→3072, batch 3072", "H100", "eager", 0.41, "pytorch#177866, no plan cache", 3072, 10240, 3072),
    Published("10240→3072, plan cached", "H100", "eager", 1.15, "pytorch#177866, plan cache", 3072, 10240, 3072),
    Published("10240→4096, batch 4096", "RTX 3060", "eager", 1.97, "pytorch/ao#174", 4096, 10240, 4096),
    Published("10240³", "RTX 3060", "eager", 1.72, "pytorch/ao#174", 10240, 10240, 10240),
    Published("BERT-base, batch 4", "A100", "eager", 0.71, _TUTORIAL),
    Published("BERT-base, batch 16", "A100", "eager", 1.23, _TUTORIAL),
    Published("BERT-base, batch 64", "A100", "eager", 1.22, _TUTORIAL),
    Published("BERT-base, batch 256", "A100", "eager", 1.14, _TUTORIAL),
    Published("BERT-base, batch 4", "A100", "compiled", 1.02, _TUTORIAL),
    Published("BERT-base, batch 16", "A100", "compiled", 1.18, _TUTORIAL),
    Published("BERT-base, batch 64", "A100", "compiled", 1.13, _TUTORIAL),
    Published("BERT-base, batch 256", "A100", "compiled", 1.12, _TUTORIAL),
    Published("gpt-fast, one token", "not stated", "compiled", 1.10, "pytorch#115077 (114 / 104 tokens per second)"),
    Published("SAM ViT-h, MLP", "A100", "compiled", 1.10, "torchao README"),
)


def published_points() -> pd.DataFrame:
    """`PUBLISHED`, slowest first: kind ("published"), key (a letter), case, device, timing, speedup, source, sizes."""
    points = sorted(PUBLISHED, key=lambda point: point.speedup)
    table = pd.DataFrame([vars(point) for point in points])
    table.insert(0, "kind", "published")
    table.insert(1, "key", list(string.ascii_letters[: len(points)]))
    return table


def _prediction(device: str, keys: Mapping[str, object], dense_us: float, sparse_us: float) -> dict[str, object]:
    times = {"dense_us": dense_us, "sparse_us": sparse_us, "speedup": dense_us / sparse_us}
    return {"kind": "predicted", "device": device, **keys, **times}


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} = {value}: must be at least 1")
