"""What an update and an env step cost by size: `python -m benchmarks.scaling`.

It draws figures/peers/scaling.png, on which a size that costs more than its neighbours would stand out.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.driver import ROOT
from benchmarks.updates import EPISODES, products
from k24lab.analysis.curve_plots import panels, shared_legend
from k24lab.analysis.style import LineStyle, method_style, paper_style, save_figure
from k24lab.bench.timing import Call, interleaved
from k24lab.bench.train import Shape, random_batch, spec_of
from k24lab.envs.registry import make_env
from k24lab.lab.config import build_config
from k24lab.marl.learner import build_learner
from k24lab.ops.library import keep_memory

METHODS = ("fups", "nops", "k24")
TASKS = {
    "rolenav": LineStyle("RoleNav", "#882255", "-", "^"),
    "mpe/simple_spread": LineStyle("simple_spread", "#44AA99", "--", "s"),
    "vmas/navigation": LineStyle("VMAS navigation", "#999933", ":", "v"),
}
USUAL: Shape = (3, 18, 5, 64, 25)  # agents, observation, actions, hidden size, steps
# Panels of updates: sizes, one of which is changed at a time.
SIZES: dict[str, tuple[int, ...]] = {
    "agents": (1, 2, 3, 5, 8, 16, 32, 64, 100),
    "hidden size": (16, 32, 64, 96, 128, 192, 256, 384, 512),
    "episodes in a batch": (1, 2, 4, 8, 16, 32, 64, 128),
}
ENVIRONMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
USUAL_ENVIRONMENTS = 32
WIDTH = 1024  # of the matrices whose product is the measure
SHORTEST = 0.1  # seconds of CPU time that a measurement takes
LABELS = {
    "updates": "CPU time, over large matrix\nproducts of as much work",
    "env steps": "CPU time of an env step,\nover 32 environments",
}
PRODUCTS = "products"
TICKS, MOST_TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50), 8


def cpu_time(call: Call) -> Callable[[], float]:
    """Measures microseconds of CPU time: what else runs on the machine counts little."""
    call()
    started = time.process_time()
    call()
    repeats = max(1, round(SHORTEST / max(time.process_time() - started, 1e-6)))

    def measure() -> float:
        started = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - started) / repeats * 1e6

    return measure


def update_calls(shape: Shape, episodes: int) -> dict[str, Call]:
    """An update of each method, and a product of two large matrices."""
    spec = spec_of(shape)
    batch = random_batch(spec, episodes)
    learners = {name: build_learner(build_config(method=name, hidden_dim=shape[3]), spec) for name in METHODS}
    x, weight, out = (torch.randn(WIDTH, WIDTH) for _ in range(3))
    calls: dict[str, Call] = {name: partial(learner.update, batch, 1000) for name, learner in learners.items()}
    return calls | {PRODUCTS: partial(torch.mm, x, weight, out=out)}


def update_rows(rounds: int, sizes: Mapping[str, tuple[int, ...]] = SIZES) -> Iterator[dict[str, Any]]:
    """A row for each size and method: CPU time over that of large matrix products of as much work."""
    for panel, values in sizes.items():
        for value in values:
            n, o, a, h, t = USUAL
            shape = (value if panel == "agents" else n, o, a, value if panel == "hidden size" else h, t)
            episodes = value if panel == "episodes in a batch" else EPISODES
            work = products(shape) * episodes / EPISODES / (2 * WIDTH**3)
            times = interleaved(update_calls(shape, episodes), rounds, cpu_time)
            for name in METHODS:
                ratios = [own / (work * base) for own, base in zip(times[name], times[PRODUCTS], strict=True)]
                yield {"panel": panel, "size": value, "of": name, "ratio": statistics.median(ratios)}


def episode_call(task: str, n_envs: int) -> tuple[Call, int]:
    """Playing an episode of random actions in each environment, and its env steps."""
    env = make_env(task, n_envs)
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(min(env.spec.n_actions), (n_envs, env.spec.n_agents), generator=generator)

    @torch.inference_mode()
    def play() -> None:
        env.reset(0)
        for _ in range(env.spec.episode_limit):
            env.step(actions)

    return play, env.spec.episode_limit * n_envs


def environment_rows(rounds: int, counts: tuple[int, ...] = ENVIRONMENTS) -> Iterator[dict[str, Any]]:
    """A row for each task and number of environments: CPU time of an env step over that with the usual number."""
    for task in TASKS:
        played = {str(count): episode_call(task, count) for count in {*counts, USUAL_ENVIRONMENTS}}
        times = interleaved({count: call for count, (call, _) in played.items()}, rounds, cpu_time)
        each = {count: [us / played[count][1] for us in own] for count, own in times.items()}
        usual = each[str(USUAL_ENVIRONMENTS)]
        for count in counts:
            ratios = [own / base for own, base in zip(each[str(count)], usual, strict=True)]
            yield {"panel": "environments", "size": count, "of": task, "ratio": statistics.median(ratios)}


def draw(table: pd.DataFrame, folder: Path) -> Path:
    """A panel for each size; returns the picture."""
    with paper_style():
        fig, axes = panels(table["panel"].nunique(), n_columns=2, height=2.2)
        for ax, (panel, rows) in zip(axes, table.groupby("panel", sort=False), strict=True):
            draw_panel(rows, str(panel), ax)
        return save_figure(shared_legend(fig), "peers/scaling", table, folder)["png"]


def draw_panel(rows: pd.DataFrame, panel: str, ax: Axes) -> None:
    """The ratio of every method or task by size."""
    for name, own in rows.groupby("of", sort=False):
        look = TASKS.get(str(name)) or method_style(str(name))
        line: dict[str, Any] = {"color": look.color, "linestyle": look.linestyle, "marker": look.marker}
        ax.plot(own["size"], own["ratio"], label=look.label, markersize=3.5, **line)
    kind = "env steps" if panel == "environments" else "updates"
    ax.set(xscale="log", yscale="log", xlabel=panel, ylabel=LABELS[kind])
    plain = FuncFormatter("{:g}".format)
    shown = sorted(rows["size"].unique())
    ax.set_xticks(shown[:: 2 if len(shown) > MOST_TICKS else 1], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    if kind == "updates":
        ax.set_yticks([tick for tick in TICKS if tick < 1.2 * rows["ratio"].max()])
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_ylim(0.9, None)
    ax.xaxis.set_major_formatter(plain)
    ax.yaxis.set_major_formatter(plain)


def main() -> None:
    """Read the command line, measure and draw."""
    argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__).parse_args()
    torch.set_num_threads(1)
    keep_memory()
    rows = []
    for row in chain(update_rows(5), environment_rows(3)):
        print(row, flush=True)
        rows.append(row)
    print(draw(pd.DataFrame(rows).round({"ratio": 3}), ROOT / "figures"))


if __name__ == "__main__":
    main()
