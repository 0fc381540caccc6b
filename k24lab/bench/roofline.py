"""A roofline model of 2:4 against dense on GPUs in fp16, and the published measurements to compare it with.

t = launch + max(2 * out * in * batch / (efficiency * peak), bytes / (0.8 * bandwidth)). A sparse call serves one mask
(torch's 2:4 tensors are two-dimensional), a dense call may be one batched matmul over all agents. The model does not
know tile or wave quantisation or the choice of kernels: read its numbers as "at best about".
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from k24lab.inference.costs import agent_layers, kernel_shape

CLAIM = (1.5, 1.8)  # the speedup of 2:4 on Ampere that the original design claims
# Microseconds that a call takes whatever it computes: one small kernel inside a CUDA graph takes 2-4 (assumed; NVIDIA
# blog "Getting Started with CUDA Graphs": 3.4). Ratios for small layers hardly depend on it.
LAUNCH = 3.0
ITEMSIZE = 2  # bytes of a number
PACKED_RATIO = 9 / 16  # bytes of a 2:4 weight over dense: 2 of 4 values and 4 bits of indices per group
BANDWIDTH_EFFICIENCY = 0.8  # share of the peak that a streaming kernel reaches (assumed)


class Device(NamedTuple):
    """Peaks of a GPU (fp16 in, fp32 accumulate) and the shares of them that published matmuls reached."""

    dense_tflops: float
    sparse_tflops: float  # dense-equivalent, as vendors count it
    bandwidth: float  # GB/s
    dense_efficiency: float
    sparse_efficiency: float


DEVICES = {
    # NVIDIA A100 80GB SXM datasheet; cutlass#408, 16384^3: 302 TFLOP/s dense, 484 sparse
    "A100": Device(312.0, 624.0, 2039.0, 0.97, 0.776),
    # NVIDIA H100 SXM datasheet; pytorch#177866, 10240 -> 3072, batch 3072: 0.248 ms dense, 0.216 ms sparse
    "H100": Device(989.0, 1979.0, 3350.0, 0.79, 0.45),
    # NVIDIA GA102 whitepaper; pytorch/ao#174, RTX 3060, 10240^3: 27 dense, 47 sparse of 25.5 and 51 TFLOP/s
    "RTX 3090": Device(71.0, 142.0, 936.0, 1.0, 0.92),
    # NVIDIA technical brief, 64 GB module; efficiency as A100 (assumed: no published matmul found)
    "Jetson AGX Orin": Device(42.5, 85.0, 205.0, 0.97, 0.776),
}


def layer_times(
    device: Device, out_features: int, in_features: int, batch: int, n_agents: int = 1
) -> tuple[float, float]:
    """Predicted (dense, sparse) microseconds of a layer with a mask and `batch` rows per agent, in a CUDA graph.

    Dense is one (batched) call for all agents; sparse is a call per agent, since torch has no batched 2:4 matmul.
    """

    def call_time(n_stacked: int, peak: float, packed_ratio: float) -> float:
        weight_bytes = ITEMSIZE * out_features * in_features * packed_ratio
        moved = n_stacked * (weight_bytes + ITEMSIZE * batch * (in_features + out_features))
        compute_us = n_stacked * 2.0 * out_features * in_features * batch / (peak * 1e6)
        return LAUNCH + max(compute_us, moved / (BANDWIDTH_EFFICIENCY * device.bandwidth * 1e3))

    dense = call_time(n_agents, device.dense_tflops * device.dense_efficiency, 1.0)
    return dense, n_agents * call_time(1, device.sparse_tflops * device.sparse_efficiency, PACKED_RATIO)


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


def predict_layers(widths: Sequence[int], batches: Sequence[int]) -> pd.DataFrame:
    """Square layers with one mask on every device: columns device, width, batch, dense_us, sparse_us, speedup."""
    cases = list(product(DEVICES, widths, batches))
    times = [layer_times(DEVICES[name], width, width, batch) for name, width, batch in cases]
    return _speedups(pd.DataFrame(cases, columns=["device", "width", "batch"]), times)


def predict_steps(
    hidden_dims: Sequence[int], n_agents: Sequence[int], batch: int, obs_dim: int, n_actions: int
) -> pd.DataFrame:
    """Steps of teams, all masked, on every device: columns device, width, n_agents, dense_us, sparse_us, speedup."""
    cases = list(product(DEVICES, hidden_dims, n_agents))
    times = [team_step_times(DEVICES[name], (obs_dim, width, n_actions), batch, n) for name, width, n in cases]
    return _speedups(pd.DataFrame(cases, columns=["device", "width", "n_agents"]), times)


def _speedups(cases: pd.DataFrame, times: Sequence[tuple[float, float]]) -> pd.DataFrame:
    dense, sparse = zip(*times, strict=True)
    table = cases.assign(dense_us=dense, sparse_us=sparse)
    return table.assign(speedup=table["dense_us"] / table["sparse_us"])


def published_points() -> pd.DataFrame:
    """Published speedups of others (published.csv), slowest first.

    Columns case, device, timing (GPU time of the kernel, or torch as called, eager or compiled), speedup, source, and
    of single layers out_features, in_features and batch (rows of activations).
    """
    return pd.read_csv(Path(__file__).with_name("published.csv")).sort_values("speedup", kind="stable")
