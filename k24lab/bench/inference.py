"""`k24lab bench inference`: where 2:4 pays at inference on the CPU of this machine (its GPU: `make gpu`).

Layers and steps of a whole team are measured dense and 2:4. Column `form` of the tables names the implementation.
"""

import datetime
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from k24lab.analysis.style import save_table
from k24lab.bench.timing import Call, interleaved, median_ratio, show
from k24lab.core.patterns import GROUP_SIZE, N_PATTERNS, masks_from_index
from k24lab.errors import ConfigError
from k24lab.inference.actor import Actor, batched, team_step
from k24lab.inference.freeze import FrozenTeam, freeze
from k24lab.lab.config import build_config
from k24lab.lab.paths import SHIPPED, figures_dir
from k24lab.lab.provenance import cpu_name
from k24lab.marl.agent import build_agent
from k24lab.ops import acting, library as kernels
from k24lab.ops.linear import linear, sparse_layers

CLAIM = (1.5, 1.8)  # the speedup of 2:4 on Ampere that the original design claims
NAME, GPU_TABLES = "speed/bench_inference", "gpu/*/teams.csv"
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
HIDDEN = (32, 64, 128, 256)
TEAMS = (1, 3, 8, 16, 64)
TEAM_BATCHES = (1, 8, 32, 256)
GAIN_TEAMS, GAIN_BATCHES = (8, 32, 100), (1, 32)
OBS_DIM, N_ACTIONS = 30, 10
MOST_MULTIPLY_ADDS = 2e9  # larger cases would take seconds a call on a CPU and are left out
ROUNDS = 20


def bench_inference(rounds: int = ROUNDS) -> Path:
    """Print all measurements and write the table `bench_inference.csv`, which notebook `06_ampere_speedup` draws.

    Without the CPU kernels it is a ConfigError.
    """
    return save_table(measure_cpu(rounds), NAME)


def published_points() -> pd.DataFrame:
    """Speedups of 2:4 matrix products on GPUs that others published (published.csv), slowest first.

    Columns case, device, timing (GPU time of the kernel, or torch as called, eager or compiled), speedup, source, and
    of single layers out_features, in_features and batch (rows of activations).
    """
    return pd.read_csv(Path(__file__).with_name("published.csv")).sort_values("speedup", kind="stable")


def measurements() -> list[pd.DataFrame | None]:
    """What was measured on a CPU and on GPUs (None: nowhere yet): files in the figures folder, else in the package.

    They come from `bench_inference` and, one for each GPU, from `make gpu`.
    """
    tables: list[pd.DataFrame | None] = []
    for pattern, command in ((f"{NAME}.csv", "k24lab bench inference"), (GPU_TABLES, "make gpu")):
        found = (sorted(folder.glob(pattern)) for folder in (figures_dir(), SHIPPED / "figures"))
        paths = next(filter(None, found), [])
        tables.append(pd.concat(map(pd.read_csv, paths)) if paths else None)
        print(f"{pattern}: {', '.join(map(str, paths)) or f'measured nowhere yet ({command})'}")
    return tables


def measure_cpu(rounds: int) -> pd.DataFrame:
    """Layers and steps of teams."""
    torch.set_num_threads(1)
    if kernels.library() is None:
        raise ConfigError("bench inference measures the CPU kernels, which are not built here (k24lab doctor kernels)")
    about = {"device": f"{cpu_name()}, one thread", "kernels": kernels.describe(), "torch": torch.__version__}
    print(", ".join(about.values()))
    layers, teams = measure_layers(WIDTHS, BATCHES, rounds), measure_teams(HIDDEN, TEAMS, TEAM_BATCHES, rounds)
    show(f"Square layers of one network (microseconds: median and quartiles of {rounds} rounds)", layers)
    show("One step of a team (the same)", teams)
    gains = measure_gains(HIDDEN[1:], GAIN_TEAMS, GAIN_BATCHES, rounds)
    show("One step of a team with gains (the same)", gains)
    return pd.concat([layers, teams, gains]).assign(
        kind="measured", **about, date=datetime.date.today().isoformat(), rounds=rounds
    )


@torch.inference_mode()
def measure_layers(widths: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """Square layers of one network on the CPU in float32: plain torch, and the kernels.

    `2:4` and `packed dense` are the kernel for few rows, `2:4, columns` that for many. torch is measured with new
    memory for the result (linear) and without (addmm). Weights stay in the cache if they fit.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for width in widths:
        weight, bias = random_24_weight(width, width, generator), torch.randn(width, generator=generator)
        sparse = acting.PackedLinear(weight[None], bias[None])
        dense = acting.PackedLinear(weight[None], bias[None], sparse=False)
        columns = sparse_layers({"layer": (weight[None], bias[None])})["layer"]
        for batch in batches:
            if width * width * batch > MOST_MULTIPLY_ADDS:
                continue
            x, out = torch.randn(batch, width, generator=generator), torch.empty(1, batch, width)
            calls: dict[str, Call] = {
                "2:4": partial(sparse, x[None], out=out),
                "packed dense": partial(dense, x[None], out=out),
                "2:4, columns": partial(linear, columns, x.T[None].contiguous()),
                "torch, linear": partial(F.linear, x, weight, bias),
                "torch, addmm": partial(torch.addmm, bias, x, weight.T, out=out[0].clone()),
            }
            about = {"level": "layer", "width": width, "batch": batch, "n_agents": 1}
            rows += _rows(interleaved(calls, rounds), ["torch, linear", "torch, addmm"], about)
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_teams(
    hidden: Sequence[int], teams: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS
) -> pd.DataFrame:
    """A step of a whole team on the CPU in float32: plain torch, and the kernels (as in `measure_layers`).

    `torch, batched` and `torch, agent by agent` compute what the kernel does, a network for every agent, as separate
    dense networks would; `speedup` compares with them. `torch, one shared network` gives all agents the same weights:
    it is cheaper, and what a team pays that has no masks.
    """
    rows = []
    for size, n in product(hidden, teams):
        team = random_team(size, n)
        actors = {"2:4": Actor(team, "kernel"), "packed dense": Actor(team, "kernel", sparse=False)}
        actors["2:4, columns"] = Actor(team, "columns")
        matrices = team.folded()
        agents = [{name: (weight[k], bias[0]) for name, (weight, bias) in matrices.items()} for k in range(n)]
        shared = batched({name: (weight[:1], bias) for name, (weight, bias) in matrices.items()})
        for batch in batches:
            if n * batch * size * size * 9 > MOST_MULTIPLY_ADDS:
                continue
            for actor in actors.values():
                actor.reset()
            x, state = torch.randn(n, batch, OBS_DIM), torch.zeros(n, batch, size)
            calls: dict[str, Call] = {name: partial(actor.q_values, x) for name, actor in actors.items()}
            calls["torch, batched"] = partial(team_step, batched(matrices), x, state)
            calls["torch, agent by agent"] = partial(agent_by_agent, agents, x, state)
            together = x.view(1, n * batch, -1), state.view(1, n * batch, -1)
            calls["torch, one shared network"] = partial(team_step, shared, *together)
            about = {"level": "team", "width": size, "batch": batch, "n_agents": n}
            rows += _rows(interleaved(calls, rounds), ["torch, batched", "torch, agent by agent"], about)
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_gains(
    hidden: Sequence[int], teams: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS
) -> pd.DataFrame:
    """A step of a team of `gains24`, whose agents are columns of one 2:4 product, beside a mask for each agent.

    `speedup` is over the faster implementation of one dense network whose observations have a one-hot id.
    """
    rows = []
    for size, n, batch in product(hidden, teams, batches):
        dense = random_team(size, n, "magnitude24", ids=True)
        kernel = Actor(dense, "kernel", sparse=False)
        x, with_ids = torch.randn(n, batch, OBS_DIM), torch.randn(n, batch, OBS_DIM + n)
        together = with_ids.view(1, n * batch, -1), torch.zeros(1, n * batch, size)
        calls: dict[str, Call] = {
            "2:4 with gains": partial(Actor(random_team(size, n, "gains24")).q_values, x),
            "2:4, a mask each": partial(Actor(random_team(size, n)).q_values, x),
            "dense with ids, kernel": partial(kernel.q_values, with_ids),
            "dense with ids, torch": partial(team_step, batched(dense.folded()), *together),
        }
        about = {"level": "gains", "width": size, "batch": batch, "n_agents": n}
        rows += _rows(interleaved(calls, rounds), ["dense with ids, kernel", "dense with ids, torch"], about)
    return pd.DataFrame(rows)


def agent_by_agent(
    agents: Sequence[Mapping[str, tuple[Tensor, Tensor]]], x: Float[Tensor, "K B in"], hidden: Float[Tensor, "K B H"]
) -> list[Float[Tensor, "B A"]]:
    """Q-values of one agent after the other by torch's own GRU cell and linear layers, from the layers of each."""
    q_values = []
    for layers, inputs, state in zip(agents, x, hidden, strict=True):
        (w_x, b_x), (w_h, b_h) = layers["rnn_input"], layers["rnn_hidden"]
        y = torch.gru_cell(F.linear(inputs, *layers["fc1"]).relu_(), state, w_x, w_h, b_x, b_h)
        y = F.linear(y, *layers["fc2"]).relu_()
        y = F.linear(y, *layers["fc3"]).relu_()
        q_values.append(F.linear(y, *layers["fc4"]))
    return q_values


def random_24_weight(out: int, columns: int, generator: torch.Generator) -> Float[Tensor, "out columns"]:
    """Normal weights under a random 2:4 mask on the generator's device; the columns are a multiple of 4."""
    on = generator.device
    weight = torch.randn(out, columns, generator=generator, device=on)
    index = torch.randint(N_PATTERNS, (out, columns // GROUP_SIZE), generator=generator, device=on)
    return weight * masks_from_index(index, weight).reshape(out, columns)


def random_team(hidden_dim: int, n_agents: int, method: str = "random24", ids: bool = False) -> FrozenTeam:
    """A team that was never trained, with other gains for each agent where the method has some."""
    config = build_config({"method": method, "hidden_dim": hidden_dim, "agent_id": ids})
    agent = build_agent(config, OBS_DIM + n_agents * ids, N_ACTIONS, n_agents)
    with torch.no_grad():
        for parameter in agent.gains.parameters():
            parameter.normal_(std=0.1)
    return freeze(agent, config, OBS_DIM, n_agents, t_env=0)


def _rows(times: Mapping[str, Sequence[float]], plain: Sequence[str], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per implementation: median and quartiles, and `speedup` over the fastest of the `plain` ones.

    `own` is what 2:4 itself gains in the kernel for few rows, over the same kernel with all weights.
    """
    fastest = min(plain, key=lambda name: statistics.median(times[name]))
    rows = []
    for name, values in times.items():
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        row = {**about, "form": name, "us": median, "us_low": low, "us_high": high}
        row["speedup"] = median_ratio(times[fastest], values)
        if name == "2:4":
            row["own"] = median_ratio(times["packed dense"], values)
        rows.append(row)
    return rows
