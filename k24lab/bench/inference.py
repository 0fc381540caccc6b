"""`k24lab bench inference`: where 2:4 pays at inference on this machine, on its CPU and, where it has one, its GPU."""

import datetime
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from k24lab.analysis import style
from k24lab.analysis.curve_plots import shared_legend
from k24lab.analysis.inference_plots import gpu_figure, inference_figure
from k24lab.bench import cpu as bench_cpu, gpu as bench_gpu, roofline
from k24lab.errors import ConfigError, RunError
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import freeze
from k24lab.inference.gpu import DTYPES, GPUActor
from k24lab.lab.config import build_config
from k24lab.lab.paths import CHECKOUT, figures_dir
from k24lab.marl.agent import build_agent
from k24lab.ops import library as kernels

NAME, GPU_NAME = "bench_inference", "bench_inference_gpu"
GPU_BATCHES = (1, 32, 256, 1024, 4096)
SHOWN = ["width", "batch", "n_agents", "form", "us", "us_low", "us_high", "speedup", "own"]


def bench_inference(rounds: int = bench_cpu.ROUNDS) -> list[Path]:
    """Print all measurements and write the figures `bench_inference` and, with a GPU, `bench_inference_gpu`.

    Raises:
        ConfigError: the CPU kernels are not built.
    """
    cpu = measure_cpu(rounds)
    layers, teams = (cpu[cpu["level"] == level] for level in ("layer", "team"))
    with style.paper_style():
        fig = shared_legend(inference_figure(layers, teams))
        paths = list(style.save_figure(fig, NAME, cpu).values())
    available, reason = bench_gpu.sparse24_available()
    print(f"\nGPU: {reason}")
    if available:
        gpu = measure_gpu(rounds)
        with style.paper_style():
            fig = shared_legend(gpu_figure(gpu))
            paths += style.save_figure(fig, GPU_NAME, gpu).values()
    return paths


def measurements(measure: bool = False, rounds: int = bench_cpu.ROUNDS) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """What was measured on a CPU and on a GPU (None: nowhere yet), and a line that says where and when.

    From the files of `bench_inference` in the figures folder, or else those that come with the package's checkout;
    with `measure`, here and now (minutes).

    Raises:
        RunError: no file, and `measure` is off.
    """
    if measure:
        bench_inference(rounds)
    cpu, gpu = _stored(NAME), _stored(GPU_NAME)
    if cpu is None:
        raise RunError(f"{figures_dir() / NAME}.csv is missing: k24lab bench inference, or measure = True")
    return cpu, gpu


def _stored(name: str) -> pd.DataFrame | None:
    for folder in (figures_dir(), CHECKOUT / "figures"):
        if (path := folder / f"{name}.csv").is_file():
            table = pd.read_csv(path)
            about = table.dropna(subset="date").iloc[0]
            print(f"{name}: measured on {about['device']}, {about['date']}, torch {about['torch']}")
            return table
    print(f"{name}: measured nowhere yet (k24lab bench inference)")
    return None


def measure_cpu(rounds: int) -> pd.DataFrame:
    """Layers, steps of teams, rollouts, and what a roofline with this machine's measured peaks predicts for layers.

    Raises:
        ConfigError: the CPU kernels are not built.
    """
    torch.set_num_threads(1)
    if kernels.library() is None:
        raise ConfigError("bench inference measures the CPU kernels, which are not built here (k24lab doctor kernels)")
    machine = bench_cpu.measure_machine(rounds)
    print(f"{machine.name}, torch {torch.__version__}, kernels: {kernels.describe()}")
    print(
        f"peak {1e3 * machine.dense_tflops:.1f} GFLOP/s, bandwidth {machine.bandwidth:.1f} GB/s, "
        f"{machine.launch:.1f} us a call"
    )
    tables = {
        "Square layers of one network": bench_cpu.measure_layers(bench_cpu.WIDTHS, bench_cpu.BATCHES, rounds),
        "One step of a team": bench_cpu.measure_teams(
            bench_cpu.HIDDEN, bench_cpu.TEAMS, bench_cpu.TEAM_BATCHES, rounds
        ),
        "A rollout of RoleNav (batch: environments)": bench_cpu.measure_rollouts(
            bench_cpu.ROLLOUT_TEAMS, bench_cpu.ROLLOUT_ENVS, rounds
        ),
    }
    for title, table in tables.items():
        _show(f"{title} (microseconds: median and quartiles of {rounds} turns)", table)
    predicted = roofline.predict_layers(machine, bench_cpu.WIDTHS, bench_cpu.BATCHES)
    predicted = predicted.rename(columns={"sparse_us": "us"})[["kind", "width", "batch", "n_agents", "us", "speedup"]]
    measured = pd.concat(list(tables.values())).assign(kind="measured")
    peaks = {"peak_gflops": 1e3 * machine.dense_tflops, "gb_per_s": machine.bandwidth, "call_us": machine.launch}
    return pd.concat([measured, predicted.assign(level="layer", form="roofline")]).assign(
        device=machine.name, kernels=kernels.describe(), torch=torch.__version__, date=_today(), rounds=rounds, **peaks
    )


def measure_gpu(rounds: int) -> pd.DataFrame:
    """Layers of every width and batch (GPU time alone, and one call with its host time), and whole steps of teams.

    Raises:
        ConfigError: no GPU with 2:4 kernels.
    """
    shapes = [(w, w, b) for w, b in product(bench_cpu.WIDTHS, bench_cpu.BATCHES)]
    layers = [bench_gpu.measure_linear(shapes, 1, timing, rounds) for timing in bench_gpu.TIMINGS]
    table = pd.concat(layers).assign(level="layer")
    table["width"] = table["out_features"]
    steps = pd.DataFrame(_gpu_steps(bench_cpu.HIDDEN, bench_cpu.TEAMS, GPU_BATCHES, rounds))
    table = pd.concat([table, steps.assign(level="team")])
    table["device"], table["torch"], table["date"] = torch.cuda.get_device_name(), torch.__version__, _today()
    _show(f"GPU (microseconds, median of {rounds}, interleaved)", table)
    return table


def _gpu_steps(
    hidden: Sequence[int], teams: Sequence[int], batches: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """A replayed CUDA graph of one step: a 2:4 call for each mask against one dense batched product a layer."""
    for size, n, batch, dtype in product(hidden, teams, batches, DTYPES):
        config = build_config({"method": "random24", "hidden_dim": size})
        sizes = bench_cpu.OBS_DIM, bench_cpu.N_ACTIONS
        team = freeze(build_agent(config, *sizes, n), config, bench_cpu.OBS_DIM, n, t_env=0)
        dense, sparse = (GPUActor(team, batch, dtype, form) for form in ("dense", "sparse"))
        x = torch.randn(n, batch, bench_cpu.OBS_DIM)
        error = (sparse.q_values(x.cuda()).float().cpu() - Actor(team, "torch").q_values(x)).abs().max().item()
        times = bench_gpu.median_interleaved(dense.replay, sparse.replay, bench_gpu.gpu_time, rounds)
        keys = {"kind": "measured", "width": size, "n_agents": n, "batch": batch, "dtype": dtype, "timing": "graph"}
        yield keys | {"dense_us": times[0], "sparse_us": times[1], "speedup": times[0] / times[1], "max_error": error}


def _show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}:")
    columns = [c for c in [*SHOWN, "timing", "dtype", "dense_us", "sparse_us", "max_error"] if c in table]
    with pd.option_context("display.width", 200, "display.max_rows", None, "display.float_format", "{:.2f}".format):
        print(table[columns].to_string(index=False))


def _today() -> str:
    return datetime.date.today().isoformat()
