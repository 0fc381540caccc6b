"""What one layer, one step of a whole team and a rollout cost on the CPU, dense and 2:4, in one interleaved run."""

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

from k24lab.bench.gpu import random_24_weight
from k24lab.bench.roofline import Device
from k24lab.envs.registry import make_env
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import freeze
from k24lab.inference.team_step import batched, team_step
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent, step
from k24lab.marl.learner import build_learner
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import collect
from k24lab.ops import acting, calls as ops

Call = Callable[[], object]
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
HIDDEN = (32, 64, 128, 256)
TEAMS = (1, 3, 8, 16, 64)
TEAM_BATCHES = (1, 8, 32, 256)
ROLLOUT_TEAMS, ROLLOUT_ENVS = (3, 8), (1, 8, 32)
OBS_DIM, N_ACTIONS = 30, 10
MOST_MULTIPLY_ADDS = 2e9  # of a case: larger ones would take seconds a call on a CPU
LEAST_SECONDS = 3e-4  # that are timed at once
WINDOWS = 3
ROUNDS = 20


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each call, in turn `rounds` times.

    Fast ones are repeated until they can be timed, and a turn's time is the least of WINDOWS: on a shared machine a
    process is put aside for milliseconds now and then, which says nothing about the call.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, int(LEAST_SECONDS / max(_seconds(call, 1), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for name in names if turn % 2 else reversed(names):
            least = min(_seconds(calls[name], repeats[name]) for _ in range(WINDOWS))
            times[name].append(least / repeats[name] * 1e6)
    return times


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _rows(times: Mapping[str, Sequence[float]], plain: Sequence[str], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per form: median and quartiles, and how many times faster than the fastest form of plain torch it is.

    `own` is what 2:4 itself gains in the kernel for few rows: the same with dense weights over it, round by round.
    """
    fastest = min(plain, key=lambda name: statistics.median(times[name]))
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        gains = [a / b for a, b in zip(times[fastest], values, strict=True)]
        row = {**about, "form": name, "us": median, "us_low": low, "us_high": high}
        row["speedup"] = statistics.median(gains)
        if name == "2:4":
            row["own"] = statistics.median([a / b for a, b in zip(times["packed dense"], values, strict=True)])
        rows.append(row)
    return rows


@torch.inference_mode()
def measure_layers(widths: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """Square layers of one network on the CPU in float32: plain torch, and the kernels.

    `2:4` and `packed dense` are the kernel for few rows, `2:4, columns` that for many. Both of torch's forms are
    measured, with new memory for the result and with memory that is there. Weights stay in the cache if they fit.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    for width in widths:
        weight = random_24_weight(width, width, generator)
        bias = torch.randn(width, generator=generator)
        packed = {"2:4": True, "packed dense": False}
        forms = {name: acting.PackedLinear(weight[None], bias[None], sparse=sparse) for name, sparse in packed.items()}
        columns = ops.pack(weight[None])
        for batch in batches:
            if width * width * batch <= MOST_MULTIPLY_ADDS:
                x = torch.randn(batch, width, generator=generator)
                out = torch.empty(1, batch, width)
                calls: dict[str, Call] = {name: partial(linear, x[None], out=out) for name, linear in forms.items()}
                calls["2:4, columns"] = partial(ops.matmul, columns, x.T[None].contiguous(), bias[None])
                calls["torch, linear"] = partial(F.linear, x, weight, bias)
                calls["torch, addmm"] = partial(torch.addmm, bias, x, weight.T, out=out[0].clone())
                about = {"level": "layer", "width": width, "batch": batch, "n_agents": 1}
                rows += _rows(interleaved(calls, rounds), ["torch, linear", "torch, addmm"], about)
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_teams(
    hidden: Sequence[int], teams: Sequence[int], batches: Sequence[int], rounds: int = ROUNDS, mask_rnn: bool = True
) -> pd.DataFrame:
    """A step of a whole team on the CPU in float32: plain torch, and the kernels (forms as in `measure_layers`).

    The two forms of torch that `speedup` compares with compute what the kernel does, a network for every agent (as
    separate dense networks would). `torch, one shared network` sees all agents through the same weights: cheaper, and
    what a team pays that has no masks.
    """
    rows = []
    for size in hidden:
        for n in teams:
            config = build_config({"method": "random24", "hidden_dim": size, "mask_rnn": mask_rnn})
            team = freeze(build_agent(config, OBS_DIM, N_ACTIONS, n), config, OBS_DIM, n, t_env=0)
            actors = {"2:4": Actor(team, "kernel"), "packed dense": Actor(team, "kernel", sparse=False)}
            actors["2:4, columns"] = Actor(team, "columns")
            folded = {name: (layer.folded().expand(n, -1, -1), layer.bias) for name, layer in team.layers.items()}
            one = batched({name: (weight[:1], bias) for name, (weight, bias) in folded.items()})
            for batch in batches:
                if n * batch * size * size * 9 > MOST_MULTIPLY_ADDS:
                    continue
                for actor in actors.values():
                    actor.reset()
                x = torch.randn(n, batch, OBS_DIM)
                calls: dict[str, Call] = {name: partial(actor.q_values, x) for name, actor in actors.items()}
                state = torch.zeros(n, batch, size)
                calls["torch, batched"] = partial(team_step, batched(folded), x, state)
                calls["torch, agent by agent"] = partial(_by_agent(folded), x, state)
                shared = x.view(1, n * batch, -1), state.view(1, n * batch, -1)
                calls["torch, one shared network"] = partial(team_step, one, *shared)
                about = {"level": "team", "width": size, "batch": batch, "n_agents": n}
                plain = ["torch, batched", "torch, agent by agent"]
                rows += _rows(interleaved(calls, rounds), plain, about)
    return pd.DataFrame(rows)


def _by_agent(matrices: Mapping[str, tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """torch's own GRU cell and linear layers, one agent after the other."""

    def one(k: int, x: Tensor, hidden: Tensor) -> Tensor:
        def apply(name: str, x: Tensor) -> Tensor:
            return F.linear(x, matrices[name][0][k], matrices[name][1])

        (w_x, b_x), (w_h, b_h) = matrices["rnn_input"], matrices["rnn_hidden"]
        after = torch.gru_cell(apply("fc1", x).relu_(), hidden, w_x[k], w_h[k], b_x, b_h)
        return apply("fc4", apply("fc3", apply("fc2", after).relu_()).relu_())

    return lambda x, hidden: [one(k, x[k], hidden[k]) for k in range(len(x))]


class _Rollouts:
    """Episodes of RoleNav with K-2:4, played as training plays them and through the kernel for acting."""

    def __init__(self, n_agents: int, n_envs: int):
        self.config = build_config({"task": f"rolenav:n_agents={n_agents}", "method": "k24", "n_envs": n_envs})
        self.env = make_env(self.config.task, n_envs)
        self.learner = build_learner(self.config, self.env.spec)

    def as_training(self) -> EpisodeBatch:
        """Packs for `step`, then plays."""
        return self._play(partial(step, self.learner.argmax_weights()), self.learner.agent.initial_hidden)

    def acting_kernel(self) -> EpisodeBatch:
        """Packs for the kernel, then plays."""
        n_actions, masked = self.env.spec.action_dim, self.learner.masked_layers
        team = acting.pack_team(self.learner.argmax_weights(), n_actions, masked)
        return self._play(lambda x, hidden: (team(x.mT, hidden).mT, hidden), team.initial_hidden)

    def _play(
        self, act: Callable[..., tuple[Tensor, Tensor]], initial_hidden: Callable[[int, int], Tensor]
    ) -> EpisodeBatch:
        return collect(
            self.env,
            act,
            initial_hidden=initial_hidden,
            rows_of=self.learner.rows,
            epsilon=0.1,
            seed=1,
            generator=torch.Generator().manual_seed(0),
            agent_id=False,
            with_state=False,
        )


@torch.inference_mode()
def measure_rollouts(teams: Sequence[int], n_envs: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """Rollouts of RoleNav, an episode in each of `n_envs` (column `batch`) environments, packing included."""
    rows = []
    for n in teams:
        for e in n_envs:
            rollouts = _Rollouts(n, e)
            times = interleaved({"as training": rollouts.as_training, "kernel": rollouts.acting_kernel}, rounds)
            about = {"level": "rollout", "width": rollouts.config.hidden_dim, "batch": e, "n_agents": n}
            rows += _rows(times, ["as training"], about)
    return pd.DataFrame(rows)


@torch.inference_mode()
def measure_machine(rounds: int = ROUNDS) -> Device:
    """What the roofline needs of this CPU, in float32 on one thread: peak of a product, bandwidth, cost of a call."""
    wide, long, tiny = torch.randn(1024, 1024), torch.randn(8192, 8192), torch.randn(8, 8)
    calls: dict[str, Call] = {
        "peak": partial(F.linear, wide, wide),
        "read": long.sum,
        "call": partial(F.linear, tiny[:1], tiny),
    }
    median = {name: statistics.median(times) for name, times in interleaved(calls, rounds).items()}
    tflops = 2 * 1024**3 / median["peak"] / 1e6
    return Device(
        name=f"{device_name()}, one thread",
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


def device_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
