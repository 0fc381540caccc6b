"""Tables and figures of the report, from the committed summaries of its runs: `python -m study results`."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from k24lab.analysis.aggregate import aggregates, improvement_table, improvements
from k24lab.analysis.comparison_plots import interval_marks, vertical_references
from k24lab.analysis.curve_plots import learning_curves, panels, shared_legend
from k24lab.analysis.load import RETURN
from k24lab.analysis.references import RANDOM, known_returns
from k24lab.analysis.stats import curves, difference_table, mean_interval, paired_table
from k24lab.analysis.style import method_style, paper_style, save_figure, save_table, variant_styles
from k24lab.envs.registry import make_env
from k24lab.errors import RunError
from k24lab.inference.costs import agent_layers, team_memory
from k24lab.inference.method_costs import method_costs
from k24lab.lab.config import build_config
from k24lab.lab.runs import run_folder
from k24lab.methods import METHODS
from k24lab.methods.base import LAYERS
from study.protocol import OWN_EXTRA, SEEDS, STUDIED, TASKS
from study.references import TABLE
from study.report import FIGURES, ONE, choices, group, report_run, summaries

FOLDER = FIGURES / "study"
COST_TASK = "rolenav8"  # whose sizes the costs are counted for
REFERENCE = "fups-id"  # the simplest way to tell agents apart: how likely is it that a method beats it?
COST_AXES = {"bytes_alone": "an agent alone", "bytes_in_team": "an agent of the team"}
SHARED, SEPARATE = "fups", "nops"  # one of them is what a user would pick who knows the task
# What is asked about two methods: what masks per agent add to gains, what learning adds to fixed masks, whether one is
# ahead of ids, what 2:4 costs beside any half of the weights, and what identity and half of the weights cost.
REFERENCES = ("gains24", "random24", "fups-id", "kaleidoscope-half", SHARED, SEPARATE)
FAR = 4  # a method is far behind if it makes the range of returns so many times as wide
MARGIN = 0.2  # of curves below random actions, as a share of what lies between these and the best
# Curves of all methods at once cannot be told apart.
DRAWN = ("k24", "k24-alpha", "random24", "gains24", "kaleidoscope", "fups-id", "nops", "fups")
TITLES = {
    "rolenav3": "RoleNav 3",
    "rolenav8": "RoleNav 8",
    "rolenav16": "RoleNav 16",
    "vmas_navigation": "VMAS navigation",
    "vmas_dispersion": "VMAS dispersion",
    "vmas_het_mass": "VMAS het_mass",
    "vmas_give_way": "VMAS give_way",
    "vmas_asym_joint": "VMAS asym_joint",
    "spread": "simple_spread",
    "tag": "simple_tag",
    "lbf": "Level-Based Foraging",
    "smax": "SMAX",
}


def report_rows(task: str) -> pd.DataFrame:
    """The runs of a task's report, a row for each reading that a run belongs to; empty if there are none.

    `variant` is the method, `reading` as in `study.report.choices`, `task` the name of the study.
    """
    file = summaries(task)
    if not file.is_file():
        return pd.DataFrame()
    runs = pd.read_json(file, lines=True).set_index("run", drop=False)
    parts = []
    for method, reading, k in choices(task):
        configs = [report_run(task, method, k, seed) for seed in range(SEEDS[task])]
        names = [run_folder(config, group(task)).name for config in configs]
        found = runs.loc[[name for name in names if name in runs.index]]
        parts.append(found.assign(variant=method, reading=reading, task=task))
    return pd.concat(parts, ignore_index=True)


def whole_report(tasks: Sequence[str] = tuple(TASKS)) -> pd.DataFrame:
    """`report_rows` of all tasks that have all their runs; a task that has only some is named and left out.

    Raises:
        RunError: no task has all its runs.
    """
    found = []
    for task in tasks:
        if not len(rows := report_rows(task)):
            continue
        if len(rows) == (wanted := SEEDS[task] * len(choices(task))):
            found.append(rows)
        else:
            print(f"left out: {task}, which has {len(rows)} of {wanted} runs")
    if not found:
        raise RunError(f"no task of the report has all its runs in {FIGURES}: python -m study report")
    return pd.concat(found, ignore_index=True)


def curve_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per test of each run: run, variant, task, t_max, t_env and the return."""
    parts = []
    for run in runs.to_dict("records"):
        constant = {key: run[key] for key in ("run", "variant", "task", "t_max")}
        parts.append(pd.DataFrame(run["evaluations"]).assign(**constant))
    return pd.concat(parts, ignore_index=True)


def returns_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Final return of each task, reading and method: columns task, reading, variant, n, mean, low, high."""
    rows = []
    for (task, reading, method), of in runs.groupby(["task", "reading", "variant"], sort=False):
        mean, low, high, n = (float(part) for part in mean_interval(of[RETURN].to_numpy()))
        kept = measured_share(of, str(task)) if METHODS[str(method)].pattern == "any" else np.nan
        rows.append((task, reading, method, int(n), mean, low, high, kept))
    return pd.DataFrame(rows, columns="task reading variant n mean low high kept_measured".split())


def differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Every method against each of the `REFERENCES`, seed by seed: the runs of a seed play the same test episodes.

    The reference `better` is one network for all or separate networks, whichever has the better mean in the task.
    Columns of `paired_table`; welch_low and welch_high, the interval if seeds are not compared with each other; and
    reference.
    """
    parts = [_differences_to(runs, each).assign(reference=each) for each in REFERENCES]
    means = runs.pivot_table(index="task", columns="variant", values=RETURN).reindex(columns=[SHARED, SEPARATE])
    for task, name in means.dropna(how="all").idxmax(axis="columns").items():
        table = _differences_to(runs[runs["task"] == task], str(name))
        parts.append(table[~table["variant"].isin([SHARED, SEPARATE])].assign(reference="better"))
    return pd.concat(parts, ignore_index=True)


def _differences_to(runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    # One method's runs may be another's with other defaults, so what they are here is their variant.
    welch = difference_table(runs.assign(method=runs["variant"]), reference).set_index(["task", "variant"])
    ends = welch[["low", "high"]].add_prefix("welch_").reset_index()
    return paired_table(runs, reference).merge(ends, on=["task", "variant"], how="left")


def seed_correlation(runs: pd.DataFrame) -> pd.DataFrame:
    """How much of the difference between runs is due to their seed: columns task and correlation.

    That is the mean correlation, over the seeds, of the final returns of two methods. Near 1, comparing seed by seed
    shows much smaller differences than comparing means; near 0 it shows no smaller ones.
    """
    rows = []
    for task, of in runs.groupby("task", sort=False):
        table = of.pivot_table(index="seed", columns="variant", values=RETURN).T.drop_duplicates().T
        between = np.triu_indices(len(table.columns), k=1)
        rows.append((task, float(np.nanmean(table.corr().to_numpy()[between]))))
    return pd.DataFrame(rows, columns=["task", "correlation"])


def measured_share(runs: pd.DataFrame, task: str) -> float:
    """Share of the weights that are kept at the end, of methods whose training decides it; NaN without masks."""
    obs_dim, hidden_dim, n_actions, n_agents = sizes(task)
    inputs = obs_dim + n_agents * bool(runs["agent_id"].iloc[0])
    layers = dict(zip(LAYERS, agent_layers(inputs, hidden_dim, n_actions), strict=True))
    dropped = {name: f"sparsity_layer_{name}" for name in layers if f"sparsity_layer_{name}" in runs}
    zeros = sum(layers[name].weights * runs[column].fillna(0).mean() for name, column in dropped.items())
    return float(1 - zeros / sum(layer.weights for layer in layers.values())) if dropped else float("nan")


@cache
def sizes(task: str) -> tuple[int, int, int, int]:
    """Observation, hidden size, actions and agents of a task of the study."""
    config = build_config(TASKS[task])
    env = make_env(config.task, 1)
    env.close()
    return env.spec.obs_dim, config.hidden_dim, env.spec.action_dim, env.spec.n_agents


def cost_table(task: str = COST_TASK) -> pd.DataFrame:
    """What each method costs in the sizes of a task, in 16 bit.

    Columns of `method_costs`, and bytes_alone (what one agent reads in a step if it acts alone) and bytes_in_team (its
    part of what the team reads if all act on one machine).
    """
    obs_dim, hidden_dim, n_actions, n = sizes(task)
    team, alone = (method_costs(obs_dim, hidden_dim, n_actions, agents, STUDIED) for agents in (n, 1))
    return team.assign(bytes_alone=alone["memory_bytes"], bytes_in_team=team["memory_bytes"] / n)


def storage_table(task: str = COST_TASK) -> pd.DataFrame:
    """Ways to store a team's masks, `team_memory` in 16 bit, with kib_per_agent."""
    obs_dim, hidden_dim, n_actions, n = sizes(task)
    table = team_memory(agent_layers(obs_dim, hidden_dim, n_actions), [n], "fp16")
    return table.assign(kib_per_agent=table["bytes"] / n / 1024)


def scales(runs: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Of each task the returns that count as 0 (random actions) and as 1 (the best method's mean)."""
    table = pd.read_csv(TABLE)
    random = table[table["reference"] == "random"].set_index("task")["mean"].to_dict()
    best = runs.groupby(["task", "variant"])[RETURN].mean().groupby("task").max()
    return {str(task): (float(random[task]), float(high)) for task, high in best.items()}


def write_results(folder: Path = FOLDER) -> list[Path]:
    """Write all tables and figures of what was run so far."""
    runs = whole_report()
    one = runs[runs["reading"] == ONE]
    everywhere = one[~one["task"].isin(OWN_EXTRA)]  # tasks that all methods run
    scale = scales(everywhere)
    together = aggregates(curve_rows(everywhere), everywhere, scale)
    better = improvements(everywhere, REFERENCE)
    # Of a method over ids, not of ids over a method.
    better = better.assign(probability=1 - better["probability"], low=1 - better["high"], high=1 - better["low"])
    returns, costs = returns_table(runs), cost_table()
    paths = [
        save_table(returns, "returns", folder),
        save_table(together, "aggregates", folder),
        save_table(better.rename(columns={"reference": "variant"}), "improvement", folder),
        save_table(improvement_table(one, REFERENCE), "improvement_by_task", folder),
        save_table(differences(one), "differences", folder),
        save_table(seed_correlation(one), "seed_correlation", folder),
        save_table(costs, "costs", folder),
        save_table(storage_table(), "storage", folder),
    ]
    with paper_style():
        paths += draw_scores(returns[returns["reading"] == ONE], folder)
        paths += draw_costs(together[together["aggregate"] == "mean"], costs, folder)
        paths += draw_curves(one, folder)
    plt.close("all")
    return paths


def draw_scores(returns: pd.DataFrame, folder: Path) -> list[Path]:
    """A panel per task: every method's mean return and interval, and as named dotted lines what is known of the task.

    An axis covers the methods. One that is so far behind that the others could not be told apart stands at its edge, as
    an arrow with its return.
    """
    tasks = list(dict.fromkeys(returns["task"]))
    styles = variant_styles(returns["variant"].unique())
    fig, axes = panels(len(tasks), n_columns=3, height=2.7)
    labelled: list[str] = []
    for k, (ax, task) in enumerate(zip(axes, tasks, strict=True)):
        rows = returns[returns["task"] == task]
        names = [name for name in styles if name in set(rows["variant"])]
        interval_marks(rows, "mean", ax, styles)
        _fit_to(rows, names, ax)
        known = known_returns(str(TASKS[task]["task"]))
        far = vertical_references(ax, {name: at for name, at in known.items() if name != RANDOM})
        ax.set_title(TITLES[task], pad=12)  # above the names of the lines
        ax.set_xlabel("final test return" + far.replace(" (", "\n(", 1))
        if k % 3 and names == labelled:  # the panel left of it says who is who
            ax.set_yticklabels([])
        labelled = names
    return list(save_figure(fig, "returns_by_task", returns, folder).values())


def _fit_to(rows: pd.DataFrame, names: Sequence[str], ax: Axes) -> None:
    """The axis of `draw_scores`, whose lines are `names`, the first on top."""
    rows = rows.set_index("variant").loc[[*names]]
    lows, highs = rows["low"].fillna(rows["mean"]), rows["high"].fillna(rows["mean"])
    last, low, high = str(rows["mean"].idxmin()), lows.min(), highs.max()
    far, width = float(rows["mean"].min()), high - lows.drop(last).min()
    if high - far > FAR * width:
        low = high - 1.25 * width
        text, across = f"$\\leftarrow$ {far:.1f}", ax.get_yaxis_transform()
        ax.text(0.03, names.index(last), text, transform=across, fontsize=7, va="center")
    margin = 0.07 * (high - low)
    ax.set_xlim(low - margin, high + margin)


def draw_costs(scores: pd.DataFrame, costs: pd.DataFrame, folder: Path) -> list[Path]:
    """Mean score over all tasks against the bytes that an agent reads, acting alone and in its team."""
    table = scores.rename(columns={"variant": "method"}).merge(costs, on="method")
    fig, axes = panels(2, n_columns=2, height=2.6)
    for ax, (column, title) in zip(axes, COST_AXES.items(), strict=True):
        _cost_axes(table, column, title, ax)
    axes[0].set_ylabel("score (mean over tasks)")
    return list(save_figure(shared_legend(fig), "score_and_cost", table, folder).values())


def _cost_axes(table: pd.DataFrame, column: str, title: str, ax: Axes) -> None:
    for row in table.to_dict("records"):
        look = method_style(row["method"])
        ends = np.array([[row["value"] - row["low"]], [row["high"] - row["value"]]])
        mark: dict[str, Any] = {"fmt": look.marker, "color": look.color, "markersize": 4, "elinewidth": 1}
        ax.errorbar(row[column] / 1024, row["value"], yerr=np.nan_to_num(ends), label=look.label, **mark)
    ax.set(title=title, xlabel="KiB read per agent and step (16 bit)", xlim=(0, None))


def draw_curves(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """A panel per task: learning curves of the methods that span the others.

    An axis begins a little below random actions: untrained networks may be so far below that nothing else is seen.
    """
    drawn = runs[runs["variant"].isin(DRAWN)]
    if drawn.empty:
        return []
    table = curves(curve_rows(drawn), RETURN)
    tasks = list(dict.fromkeys(table["task"]))
    fig, axes = panels(len(tasks), n_columns=3)
    styles = variant_styles(table["variant"].unique())
    for ax, task in zip(axes, tasks, strict=True):
        known = known_returns(str(TASKS[task]["task"]))
        of_task = table[table["task"] == task]
        learning_curves(of_task, ax, title=TITLES[task], references=known, styles=styles)
        random, best = known[RANDOM], max(*known.values(), of_task["mean"].max())
        ax.set_ylim(bottom=random - MARGIN * (best - random))
    return list(save_figure(shared_legend(fig), "curves", table, folder).values())
