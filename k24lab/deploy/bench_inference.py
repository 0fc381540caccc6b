"""`k24lab bench inference`: what one layer and one step of a whole team cost, dense and 2:4, in one interleaved run."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from k24lab import kernels
from k24lab.analysis import style
from k24lab.analysis.inference_plots import inference_figure
from k24lab.analysis.plots import shared_legend
from k24lab.config import build_config
from k24lab.deploy.actor import Actor
from k24lab.deploy.bench_gpu import random_24_weight
from k24lab.deploy.team import FrozenTeam, freeze
from k24lab.errors import ConfigError
from k24lab.kernels import acting, describe
from k24lab.marl.agents import build_agent

Call = Callable[[], object]
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
HIDDEN = (32, 64, 128, 256)
TEAMS = (1, 3, 8, 16, 64)
TEAM_BATCHES = (1, 8, 32)
OBS_DIM, N_ACTIONS = 30, 10
MOST_MULTIPLY_ADDS = 2e9  # of a case: larger ones would take seconds a call on a CPU
LEAST_SECONDS = 1e-3  # that are timed at once
ROUNDS = 20


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each call, in turn `rounds` times; fast ones are repeated until they can be timed."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(LEAST_SECONDS / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for name in names if turn % 2 else reversed(names):
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e6)
    return times


def _rows(times: Mapping[str, Sequence[float]], plain: Sequence[str], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per form: median and quartiles, and how many times faster than the fastest form of plain torch it is.

    `own` is what 2:4 itself gains: the same kernel with dense weights over this one, round by round.
    """
    fastest = min(plain, key=lambda name: statistics.median(times[name]))
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        gains = [a / b for a, b in zip(times[fastest], values, strict=True)]
        row = {**about, "form": name, "us": median, "us_low": low, "us_high": high}
        row["speedup"] = statistics.median(gains)
        if name == "2:4":
            row["own"] = statistics.median([a / b for a, b in zip(times["packed dense"], values, strict=True)])
        rows.append(row)
    return rows


@torch.inference_mode()
def measure_layers(widths: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """Square layers of one network on the CPU in float32: F.linear, the kernel with dense weights, and with 2:4."""
    generator, rows = torch.Generator().manual_seed(0), []
    for width in widths:
        weight = random_24_weight(width, width, generator)
        bias = torch.randn(width, generator=generator)
        packed = {"2:4": True, "packed dense": False}
        forms = {name: acting.PackedLinear(weight[None], bias[None], sparse=sparse) for name, sparse in packed.items()}
        for batch in batches:
            if width * width * batch <= MOST_MULTIPLY_ADDS:
                x = torch.randn(batch, width, generator=generator)
                calls: dict[str, Call] = {name: partial(linear, x[None]) for name, linear in forms.items()}
                calls["torch"] = partial(F.linear, x, weight, bias)
                about = {"level": "layer", "width": width, "batch": batch, "n_agents": 1}
                rows += _rows(interleaved(calls, rounds), ["torch"], about)
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_teams(
    hidden: Sequence[int], teams: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS, mask_rnn: bool = True
) -> pd.DataFrame:
    """A step of a whole team on the CPU in float32: two forms of plain torch, and the kernel without and with 2:4."""
    rows = []
    for size in hidden:
        for n in teams:
            config = build_config({"method": "random24", "hidden_dim": size, "mask_rnn": mask_rnn})
            team = freeze(build_agent(config, OBS_DIM, N_ACTIONS, n), config, OBS_DIM, n, t_env=0)
            actors = {"2:4": Actor(team, "kernel"), "packed dense": Actor(team, "kernel", sparse=False)}
            for batch in batches:
                for actor in actors.values():
                    actor.reset()
                x = torch.randn(n, batch, OBS_DIM)
                calls: dict[str, Call] = {name: partial(actor.q_values, x) for name, actor in actors.items()}
                state = torch.zeros(n, batch, size)
                calls["torch, batched"] = partial(_batched(team), x, state)
                calls["torch, agent by agent"] = partial(_by_agent(team), x, state)
                about = {"level": "team", "width": size, "batch": batch, "n_agents": n}
                plain = ["torch, batched", "torch, agent by agent"]
                rows += _rows(interleaved(calls, rounds), plain, about)
    return pd.DataFrame(rows)


def _batched(team: FrozenTeam) -> Callable[[Tensor, Tensor], Tensor]:
    """One batched product per layer for all agents: the form of torch that suits teams."""
    size, n = team.config.hidden_dim, team.n_masks
    layers = {
        name: (layer.bias, layer.folded().mT.expand(n, -1, -1).contiguous()) for name, layer in team.layers.items()
    }

    def step(x: Tensor, hidden: Tensor) -> Tensor:
        def apply(name: str, x: Tensor) -> Tensor:
            bias, weight = layers[name]
            return torch.baddbmm(bias, x, weight)

        gate_x, gate_h = apply("rnn_input", apply("fc1", x).relu_()), apply("rnn_hidden", hidden)
        r, z = (gate_x[..., : 2 * size] + gate_h[..., : 2 * size]).sigmoid_().split(size, dim=-1)
        candidate = torch.addcmul(gate_x[..., 2 * size :], r, gate_h[..., 2 * size :]).tanh_()
        return apply("fc4", apply("fc3", apply("fc2", torch.lerp(candidate, hidden, z)).relu_()).relu_())

    return step


def _by_agent(team: FrozenTeam) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """torch's own GRU cell and linear layers, one agent after the other."""
    folded = {name: layer.folded().expand(team.n_masks, -1, -1) for name, layer in team.layers.items()}
    bias = {name: layer.bias for name, layer in team.layers.items()}

    def one(k: int, x: Tensor, hidden: Tensor) -> Tensor:
        def apply(name: str, x: Tensor) -> Tensor:
            return F.linear(x, folded[name][k], bias[name])

        gates = folded["rnn_input"][k], folded["rnn_hidden"][k], bias["rnn_input"], bias["rnn_hidden"]
        after = torch.gru_cell(apply("fc1", x).relu_(), hidden, *gates)
        return apply("fc4", apply("fc3", apply("fc2", after).relu_()).relu_())

    return lambda x, hidden: [one(k, x[k], hidden[k]) for k in range(len(x))]


def device_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def described(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what it was measured on."""
    return table.assign(
        kind="measured",
        device=device_name(),
        threads=torch.get_num_threads(),
        kernels=describe(),
        torch=torch.__version__,
        date=datetime.date.today().isoformat(),
    )


def bench_inference(rounds: int = ROUNDS) -> list[Path]:
    """Print all measurements and write the figure `bench_inference`; returns its files.

    Raises:
        ConfigError: the CPU kernels are not built.
    """
    torch.set_num_threads(1)
    if kernels.library() is None:
        raise ConfigError(
            "bench inference measures the CPU kernels, which are not built here (k24lab doctor kernels)"
        )
    print(f"{device_name()}, one thread, torch {torch.__version__}, kernels: {describe()}")
    layers = described(measure_layers(WIDTHS, BATCHES, rounds))
    teams = described(measure_teams(HIDDEN, TEAMS, TEAM_BATCHES, rounds))
    columns = ["width", "batch", "n_agents", "form", "us", "us_low", "us_high", "speedup", "own"]
    with pd.option_context("display.width", 200, "display.max_rows", None, "display.float_format", "{:.2f}".format):
        for title, table in (("Square layers of one network", layers), ("One step of a team", teams)):
            print(f"\n{title} (microseconds: median and quartiles of {rounds}, interleaved; fastest torch over this):")
            print(table[columns].to_string(index=False))
    with style.paper_style():
        fig = shared_legend(inference_figure(layers, teams, TEAM_BATCHES))
        return list(style.save_figure(fig, "bench_inference", pd.concat([layers, teams])).values())
