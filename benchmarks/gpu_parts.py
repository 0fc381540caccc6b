"""What `make gpu` measures: a function for each part, which yields the rows of its table one by one.

With the device "cpu" it is a dry run: the same calls in tiny sizes, and nothing is packed, captured or compiled.
"""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training import RUN
from k24lab.bench.inference import OBS_DIM, random_24_weight, random_team
from k24lab.bench.timing import Call, cpu_timer, interleaved, median_ratio
from k24lab.bench.train import BASELINE, VARIANTS, Shape, learners_of, peak_bytes
from k24lab.envs.registry import make_env
from k24lab.inference.actor import batched, team_step
from k24lab.inference.costs import KERNEL_TILE
from k24lab.inference.freeze import FrozenTeam
from k24lab.inference.gpu import CUTLASS_TILE, capture, gpu_time, moved, pack_for_cutlass, pack_for_gpu, sparse_calls
from k24lab.lab.config import build_config
from k24lab.lab.runs import RunFolder
from k24lab.lab.train import Trainer
from k24lab.ops.library import use_threads

Row = dict[str, Any]
Result = tuple[Callable[[], Tensor], Tensor]  # A call, and what it must compute.
Given = TypeVar("Given")
Done = TypeVar("Done")
MODES = ("eager", "graph"), ("compiled", "compiled graph")  # Compiling takes seconds, so these modes come last.
LAYER_CALLS = 20  # One measurement times this many calls, because one is too short for a GPU's clock.
TEAM_CALLS = 64  # One measurement times this many steps, divided by the number of agents.
MOST_ON_CPU = 1e6  # Updates with more (agents * hidden size^2) are measured on the GPU only.
MOST_MULTIPLY_ADDS = 3e11  # Larger layers are not in the crossover map, and large ones are called less often.
GROUPED_AGENTS = 16  # With N agents, only 1 / N of a grouped product is used, so larger teams are not measured.
STEPS = 10  # An environment without training is reset after this many steps.
TASKS = ("rolenav", "mpe/simple_spread", "vmas/navigation")  # The last one is the slowest on a CPU.
LEARNED = (BASELINE, "nops", "k24, masked GRU")


@dataclass(frozen=True)
class Sizes:
    """Cases of each part. The most important ones come first, because the last ones are left out if time runs out."""

    layers: Sequence[tuple[int, int, int]] = (  # (outputs, inputs, batch)
        *((width, width, batch) for width in (64, 128, 256, 1024) for batch in (32, 1024)),
        *((3072, 10240, batch) for batch in (64, 512, 1280, 3072)),  # from here on: published layers
        (768, 3072, 3072),
        (4096, 4096, 4096),
        (8192, 8192, 8192),
    )
    map_widths: Sequence[int] = (8192, 4096, 2048, 1024, 512, 256, 128, 64, 32)
    map_batches: Sequence[int] = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
    hidden: Sequence[int] = (64, 128, 256)
    teams: Sequence[int] = (3, 8, 32)
    batches: Sequence[int] = (1, 32, 1024)
    compiled: tuple[int, int] = (8, 32)  # (agents, batch); compiling more cases would take too long
    update_hidden: Sequence[int] = (64, 256)
    n_envs: Sequence[int] = (32, 1024)
    many_envs: int = 8192  # measured without training only
    seconds: float = 0.5  # Each loop is measured for this long.
    memory: Shape = (8, 48, 14, 128, 60)
    tests: str = "test_*.py"
    rounds: int = 10


TINY: dict[str, Any] = {"map_widths": [64, 16], "map_batches": [1, 2], "hidden": [8], "teams": [2], "batches": [2]}
TINY |= {"layers": [(64, 64, 2)], "compiled": (2, 2), "update_hidden": [8], "n_envs": [2], "many_envs": 4}
DRY = Sizes(**TINY, seconds=0.0, memory=(2, 5, 3, 8, 4), tests="test_compile.py", rounds=2)


def layers(device: str, sizes: Sizes) -> Iterator[Row]:
    """Single layers, dense and 2:4."""
    for modes, (out, columns, batch) in product(MODES, sizes.layers):
        calls = max(1, min(LAYER_CALLS, int(MOST_MULTIPLY_ADDS / (out * columns * batch))))
        for row in compared(_layer_forms(device, out, columns, batch), modes, device, sizes.rounds, calls):
            yield {"outputs": out, "inputs": columns, "batch": batch} | row


def crossover(device: str, sizes: Sizes) -> Iterator[Row]:
    """Square layers inside CUDA graphs, to find the widths and batches at which 2:4 by cuSPARSELt is faster."""
    for width, batch in product(sizes.map_widths, sizes.map_batches):
        calls = min(LAYER_CALLS, int(MOST_MULTIPLY_ADDS / (width * width * batch)))
        if not calls:
            continue
        forms = _layer_forms(device, width, width, batch)
        del forms["2:4, CUTLASS"]
        for row in compared(forms, ("graph",), device, sizes.rounds, calls):
            yield {"width": width, "batch": batch} | row


def teams(device: str, sizes: Sizes) -> Iterator[Row]:
    """One step of a team. `random24` and `k24` are the same here: their masks are constant at inference."""
    for modes, width, n, batch in product(MODES, sizes.hidden, sizes.teams, sizes.batches):
        if modes == MODES[0] or (n, batch) == sizes.compiled:
            forms, calls = _team_forms(device, width, n, batch), max(1, TEAM_CALLS // n)
            for row in compared(forms, modes, device, sizes.rounds, calls):
                yield {"width": width, "n_agents": n, "batch": batch} | row


def updates(device: str, sizes: Sizes) -> Iterator[Row]:
    """A learner update of 32 episodes with 25 steps, on the GPU, on one core, and on all cores of the CPU."""
    places = [(device, 1), ("cpu", 1), ("cpu", len(os.sched_getaffinity(0)))]
    for (place, threads), h, n in product(dict.fromkeys(places), sizes.update_hidden, sizes.teams):
        if place == "cpu" and n * h * h > MOST_ON_CPU:
            continue
        use_threads(threads)
        learners, batch = learners_of((n, 18, 5, h, 25), LEARNED, place)
        calls = {v: partial(_finished, partial(learner.update, batch, 1000), place) for v, learner in learners.items()}
        times = interleaved(calls, sizes.rounds if place != "cpu" else 3, partial(cpu_timer, repeats=1))
        for name, values in times.items():
            row = {"place": place, "threads": threads, "hidden": h, "n_agents": n, "form": name}
            yield row | {"ms": float(np.median(values)) / 1e3, "ratio": median_ratio(values, times[BASELINE])}


def loops(device: str, sizes: Sizes) -> Iterator[Row]:
    """Env steps per second of each task's environments without training, and of training."""
    places = list(dict.fromkeys([device, "cpu"]))
    alone = product((*sizes.n_envs, sizes.many_envs), places, [""])
    cases = [*alone, *product(sizes.n_envs, places, ["k24", BASELINE])]
    for task, (n, place, method) in product(TASKS, cases):
        measure = partial(_training, method) if method else _environment_alone
        row = {"task": task, "place": place, "n_envs": n, "form": f"training, {method}" if method else "no training"}
        yield row | {"env_steps_per_s": measure(task, n, place, sizes.seconds)}


def memory(device: str, sizes: Sizes) -> Iterator[Row]:
    """Peak memory of an update by method, and the memory that a team holds, and its peak, when it acts."""
    n, _, _, h, _ = sizes.memory
    for variant in VARIANTS:
        learners, batch = learners_of(sizes.memory, [variant], device)
        learner = learners[variant]
        learner.update(batch, 1000)  # The first update allocates Adam's means, which stay.
        learner.optimizer.zero_grad()
        peak = peak_bytes(learner, batch) if device == "cpu" else _peak(partial(learner.update, batch, 1000))
        yield {"what": "update", "form": variant, "peak_mb": peak / 1e6, "problem": ""}
    for form, build in _team_forms(device, h, n, sizes.batches[-1]).items():
        done: dict[str, Call] = {}  # frees the previous implementation's weights before memory is read
        before = torch.cuda.memory_allocated() if device != "cpu" else 0
        with torch.no_grad():
            done, problems = _tried({form: build}, _called)
        row: Row = {"what": "acting", "form": form, "problem": problems.get(form, "")}
        if done and device != "cpu":
            row["held_mb"] = (torch.cuda.memory_allocated() - before) / 1e6
            with torch.no_grad():
                row["peak_mb"] = _peak(done[form]) / 1e6
        yield row


@torch.no_grad()
def compared(
    forms: Mapping[str, Callable[[], Result]], modes: Sequence[str], device: str, rounds: int, calls: int = 1
) -> list[Row]:
    """A row for each mode and implementation: microseconds, speedup over `dense`, relative error, or the problem."""
    if modes == MODES[1]:
        torch.compiler.reset()  # Otherwise torch's limit of compiled variants of one function is reached.
    built, problems = _tried(forms, lambda build: build())
    rows: list[Row] = []
    for mode in modes:
        ready, failed = _tried(built, partial(_ready, device, mode, calls))
        timed = {form: call for form, (call, _) in ready.items()}
        times = interleaved(timed, rounds, cpu_timer if device == "cpu" else _gpu_timer)
        for form in forms:
            row: Row = {"form": form, "mode": mode, "problem": (problems | failed).get(form, "")}
            if form in times:
                low, us, high = np.quantile(times[form], [0.25, 0.5, 0.75]).tolist()
                row |= {"us": us / calls, "us_low": low / calls, "us_high": high / calls, "error": ready[form][1]}
                row["speedup"] = median_ratio(times["dense"], times[form]) if "dense" in times else float("nan")
            rows.append(row)
    return rows


def one_line(error: Exception) -> str:
    """An error as one line of a table."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _tried(items: Mapping[str, Given], use: Callable[[Given], Done]) -> tuple[dict[str, Done], dict[str, str]]:
    """Results of `use` by item, and for the items where it fails the reason in one line."""
    done, problems = {}, {}
    for name, item in items.items():
        try:
            done[name] = use(item)
        except Exception as error:  # This GPU has no such kernel, too little memory, or compiling fails.
            problems[name] = one_line(error)
    return done, problems


def _ready(device: str, mode: str, calls: int, built: Result) -> tuple[Call, float]:
    """What is timed, several calls or one replay of a graph of them, and the largest relative error of its result."""
    call, expected = built
    run, found = call, expected
    if mode.startswith("compiled") and device != "cpu":
        run = torch.compile(lambda: call(), fullgraph=True, dynamic=False)

    def in_a_row() -> None:
        nonlocal found
        for _ in range(calls):
            found = run()

    in_a_row()
    ready: Call = in_a_row
    if mode.endswith("graph") and device != "cpu":
        ready = capture(in_a_row)
        ready()  # The replay computes `found`, which capturing only allocated.
    return ready, ((found - expected).abs().max() / expected.abs().max()).item()


def _gpu_timer(call: Call) -> Callable[[], float]:
    call()
    return partial(gpu_time, call)


def _called(build: Callable[[], Result]) -> Call:
    """A call that was tried once."""
    call, _ = build()
    call()
    return call


def _layer_forms(device: str, out: int, columns: int, batch: int) -> dict[str, Callable[[], Result]]:
    generator = torch.Generator(device).manual_seed(0)
    weight = random_24_weight(out, columns, generator).half()
    x = torch.randn(batch, columns, generator=generator, device=device).half()
    bias = torch.randn(out, generator=generator, device=device).half()
    expected = F.linear(x, weight, bias).float()
    packs = {"dense": _as_it_is, "2:4, cuSPARSELt": _packer(device, batch), "2:4, CUTLASS": _packer(device, None)}

    def form(pack: Callable[[Tensor], Tensor]) -> Result:
        return partial(F.linear, x, pack(weight), bias), expected

    return {name: partial(form, pack) for name, pack in packs.items()}


_team = functools.lru_cache(maxsize=3)(random_team)  # All batches of a case share teams.


def _team_forms(device: str, width: int, n: int, batch: int) -> dict[str, Callable[[], Result]]:
    masks, shared = _team(width, n), _team(width, n, "magnitude24", ids=True)
    x = torch.randn(n, batch, OBS_DIM)
    forms: dict[str, Callable[[], Result]] = {
        "dense": partial(_step, masks, x, device, "dense"),
        "dense with ids": partial(_step, shared, torch.randn(1, n * batch, OBS_DIM + n), device, "dense"),
        "2:4, cuSPARSELt": partial(_step, masks, x, device, "cuSPARSELt"),
        "2:4, CUTLASS": partial(_step, masks, x, device, "CUTLASS"),
        "2:4 with gains, cuSPARSELt": partial(_step, _team(width, n, "gains24"), x, device, "cuSPARSELt"),
    }
    grouped = {"2:4 grouped, cuSPARSELt": partial(_step, masks, x, device, "grouped")}
    return forms | (grouped if n <= GROUPED_AGENTS else {})


def _step(team: FrozenTeam, x: Tensor, device: str, how: str) -> Result:
    """A step from the first hidden state, and its Q-values by dense products in float32."""
    tile = CUTLASS_TILE if how == "CUTLASS" else KERNEL_TILE
    layers, gains = moved(team, device, torch.float16, tile)
    if how == "dense":
        apply = batched(layers, gains)
    else:
        masked = [name for name, layer in team.layers.items() if layer.patterns is not None]
        rows = x.shape[1] * (len(x) if team.one_matrix or how == "grouped" else 1)
        pack = _packer(device, None if how == "CUTLASS" else rows)
        apply = sparse_calls(layers, masked, pack, gains, grouped=how == "grouped")
    first, _ = layers["fc1"]
    inputs = F.pad(x, (0, first.shape[2] - x.shape[2])).to(device, torch.float16)
    hidden = inputs.new_zeros(*x.shape[:2], first.shape[1])

    def call() -> Tensor:
        q_values, _ = team_step(apply, inputs, hidden)
        return q_values[..., : team.n_actions]

    exact = batched(*moved(team, device, torch.float32, tile))
    return call, team_step(exact, inputs.float(), hidden.float())[0][..., : team.n_actions]


def _packer(device: str, rows: int | None) -> Callable[[Tensor], Tensor]:
    """A function that packs weights for cuSPARSELt and products of so many rows, or (None) for CUTLASS."""
    if device == "cpu":
        return _as_it_is
    return pack_for_cutlass if rows is None else lambda weight: pack_for_gpu(weight, rows)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _finished(call: Call, device: str) -> None:
    """Call, and wait for the GPU."""
    call()
    if device != "cpu":
        torch.cuda.synchronize()


def _peak(call: Call) -> int:
    """Peak memory of a call on the GPU in bytes, beyond what was allocated before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _finished(call, "cuda")
    return torch.cuda.max_memory_allocated() - before


def _environment_alone(task: str, n_envs: int, device: str, seconds: float) -> float:
    """Env steps per second under random actions."""
    with contextlib.closing(make_env(task, n_envs, device=device)) as env:
        actions = torch.randint(min(env.spec.n_actions), (n_envs, env.spec.n_agents), device=device)

        def steps() -> int:
            env.reset(seed=0)
            for _ in range(STEPS):
                env.step(actions)
            return n_envs * STEPS

        return _rate(steps, device, seconds)


def _training(method: str, task: str, n_envs: int, device: str, seconds: float) -> float:
    """Env steps per second of training, in iterations of a rollout of all environments and its updates."""
    settings = {"task": task, "method": method, "device": device, "n_envs": n_envs, "buffer_size": 1000 + n_envs}
    config = build_config({**RUN, **settings, "batch_size": min(32, n_envs), "test_episodes": 1})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, RunFolder(Path(folder, "run"), config))

        def iteration() -> int:
            before = trainer.t_env
            trainer._iteration()
            return trainer.t_env - before

        with contextlib.closing(trainer):
            return _rate(iteration, device, seconds)


def _rate(call: Callable[[], int], device: str, seconds: float) -> float:
    """Env steps per second of a call that returns their number; the first call warms up and is not counted."""
    _finished(call, device)
    started, count, passed = time.perf_counter(), 0, 0.0
    while not count or passed < seconds:
        count += call()
        _finished(lambda: None, device)
        passed = time.perf_counter() - started
    return count / passed
