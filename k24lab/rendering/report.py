"""A run or a group of runs as one HTML page that needs nothing beside it: `k24lab report RUN|SWEEP`."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from k24lab.analysis import (
    comparison_plots,
    curve_plots as plots,
    load as results,
    mask_plots,
    mask_tables as tables,
    similarity,
    stats,
    style,
)
from k24lab.analysis.find_runs import Run, find_groups, find_runs, read_run
from k24lab.errors import RunError, RunWarning
from k24lab.lab import provenance
from k24lab.lab.grid import load_grid
from k24lab.lab.paths import figures_dir, runs_dir
from k24lab.lab.runs import atomic_write, find_folder, read_config
from k24lab.lab.status import as_text, group_statuses, own_settings, state_line, status_table
from k24lab.rendering import html
from k24lab.rendering.html import Section

RETURN = "test_return_mean"
DYNAMICS = ("pattern_entropy", "mask_flip_rate", "pattern_mean_similarity", "train_eval_gap", "dead_units", "loss_td")
RESULTS = (RETURN, "test_return_std", "test_battle_won_mean", "t_env", "updates", "episodes", "seconds")
OWN_CURVES: dict[str, dict[str, Any]] = {
    "return_mean": {"color": "0.6", "marker": ".", "linestyle": "none", "label": "this run, exploring", "zorder": 3},
    RETURN: {"color": "black", "linewidth": 2, "label": "this run, greedy", "zorder": 3},
}
REFERENCES = ("random24", "fups", "fups-id", "nops")  # what others are compared with: the first that has runs
LAYER, ROWS, GROUPS = "fc2", 12, 6  # the corner of the masks that is drawn


def write_report(what: str, output: Path | None = None) -> Path:
    """Write the page of a run (folder or name), a group (folder or name) or a grid file; returns its path.

    By default `report_<name>.html` in `figures_dir()`. Nothing is trained, and a page that is there is replaced whole.

    Raises:
        RunError: no such run or group, or it cannot be read.
        ConfigError: a grid file that cannot be used.
    """
    path = load_grid(Path(what)).name if what.endswith((".yaml", ".yml")) else what
    group = next((g for g in (Path(path), runs_dir() / path) if any(g.glob("*/config.json"))), None)
    folder = group or find_folder(path)
    text = _group_page(folder) if group else _run_page(folder)
    target = output or figures_dir() / f"report_{folder.resolve().name}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(text.encode())
    return target


def _run_page(folder: Path) -> str:
    config = read_config(folder)
    run = read_run(folder)
    settings = {key: as_text(value) for key, value in own_settings(config).items()}
    with style.paper_style():
        sections = [
            Section("Settings", [html.pairs(settings), html.note("Settings that are the method's own are left out.")]),
            Section("At the end", _parts(_final_numbers, run)),
            Section("Curves", _parts(_run_curves, run)),
            Section("Dynamics", _parts(_dynamics, [run])),
            Section("Masks", _parts(_masks, run)),
            Section("Similarity of agents", _parts(_similarity, run)),
            Section("Where it comes from", [html.pairs(line) for line in _attempts(folder)]),
        ]
    return html.page(folder.resolve().name, state_line(folder), sections)


def _group_page(folder: Path) -> str:
    statuses = group_statuses(folder.resolve())
    counts = ", ".join(f"{sum(s.state == state for s in statuses)} {state}" for state in {s.state: 0 for s in statuses})
    with warnings.catch_warnings(record=True) as caught, style.paper_style():
        warnings.simplefilter("always", RunWarning)
        sections = [
            Section("How far", [html.table(pd.DataFrame(status_table(statuses))), *_errors(statuses)]),
            *_study_sections(folder),
        ]
    remarks = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, RunWarning))
    sections.insert(1, Section("To bear in mind", [html.note(text) for text in remarks]))
    return html.page(folder.resolve().name, f"{len(statuses)} runs: {counts}", sections)


def _study_sections(folder: Path) -> list[Section]:
    """What finished runs show; nothing if there is none."""
    try:
        found = find_groups([folder])
    except RunError as error:
        return [Section("Results", [html.note(str(error))])]
    metrics, summaries = results.load_metrics(found), results.load_summaries(found)
    masked = [_representative(found, task) for task in summaries["task"].unique()]
    examples = [run for run in masked if run]
    return [
        Section("Returns", _parts(_returns, metrics, summaries)),
        Section("Differences", _parts(_differences, summaries)),
        Section("Dynamics", [part for task in _by_task(found) for part in _parts(_dynamics, task)]),
        Section("Masks", [part for run in examples for part in _parts(_masks, run)]),
        Section(
            "Similarity of agents", _parts(_all_pairs, found) + [p for r in examples for p in _parts(_similarity, r)]
        ),
        Section("Runs", [html.table(_run_table(found, summaries))]),
    ]


def _parts(build: Callable[..., Iterator[str]], *arguments: Any) -> list[str]:
    """The parts of a section, or in their place what is missing (an imported run has no masks, say)."""
    try:
        return list(build(*arguments))
    except RunError as error:
        return [html.note(str(error))]


def _final_numbers(run: Run) -> Iterator[str]:
    path = run.path / "summary.json"
    if not path.is_file():
        raise RunError("The run is not finished: curves and masks are those so far.")
    numbers = {key: as_text(value) for key, value in json.loads(path.read_text()).items()}
    yield html.pairs({key: numbers.pop(key) for key in RESULTS if key in numbers})
    yield html.folded("every other number", html.pairs(numbers))


def _run_curves(run: Run) -> Iterator[str]:
    metrics = results.load_metrics([run])
    own = [name for name in OWN_CURVES if name in metrics]
    others = _others(run)
    fig, (ax,) = plots.panels(1, height=2.3)
    if others:
        plots.learning_curves(stats.curves(results.load_metrics(others), RETURN), ax)
    for name in own:
        rows = metrics.dropna(subset=[name])
        ax.plot(rows["t_env"], rows[name], **OWN_CURVES[name])
    if own:
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, metrics[own].min().min()), max(high, metrics[own].max().max()))
    ax.set(xlabel="env steps", ylabel="team return")
    plots.shared_legend(fig)
    beside = f" Coloured: the {len(others)} other finished runs of its group in this task, by method." if others else ""
    yield html.figure(fig, "Black: greedy episodes with the masks that act; grey: single batches." + beside)


def _others(run: Run) -> list[Run]:
    """Finished runs of the same task in the same group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        try:
            found = find_runs(run.path.resolve().parent, task=run.config["task"])
        except RunError:
            return []
    return [other for other in found if other.id != run.id]


def _dynamics(runs: Sequence[Run]) -> Iterator[str]:
    metrics = results.load_metrics(runs)
    shown = [name for name in DYNAMICS if name in metrics and metrics[name].notna().any()]
    if not shown:
        return
    fig, axes = plots.panels(len(shown), n_columns=3, height=1.7)
    for ax, name in zip(axes, shown, strict=True):
        plots.learning_curves(stats.curves(metrics, name), ax, ylabel=style.metric_label(name))
    plots.shared_legend(fig)
    text = f"{runs[0].config['task']}: masks settle where entropy, flip rate and train-eval gap fall to near 0."
    yield html.figure(fig, text)


def _masks(run: Run) -> Iterator[str]:
    snapshots = results.load_patterns(run)
    last = snapshots[max(snapshots)]
    layer = LAYER if LAYER in last else next(iter(last))
    ax = mask_plots.mask_map(last[layer].index, rows=ROWS, groups=GROUPS)
    yield html.figure(ax, f"{run.id}, layer {layer}: what each agent keeps of a corner of the shared weights.")
    table = tables.snapshot_table(snapshots)
    fig, axes = plots.panels(3, height=2.0)
    for ax, (name, ylabel, references) in zip(
        axes,
        (
            ("hamming", "Hamming distance", {"independent masks": similarity.CHANCE_HAMMING}),
            ("entropy", "pattern entropy (nats)", {"undecided: ln 6": similarity.MAX_ENTROPY}),
            ("flip_rate", "groups changed (share)", {}),
        ),
        strict=True,
    ):
        plots.layer_lines(table, name, ax, ylabel=ylabel, references=references)
    plots.shared_legend(fig)
    yield html.figure(fig, "Over training: how far apart the masks are, how undecided, and how many groups change.")
    yield html.table(table[table["t_env"] == max(snapshots)])


def _similarity(run: Run) -> Iterator[str]:
    policies = results.load_policies(run)
    acts = policies.q_values, policies.avail_actions
    matrices = {"different greedy actions": similarity.greedy_difference(*acts)}
    if results.has_patterns(run):
        layers = results.last_patterns(run)
        matrices = {
            "Hamming distance of masks": similarity.hamming_distance(similarity.all_layers(layers).index)
        } | matrices
    names = results.mask_names(run)
    height = min(5.5, max(2.4, 0.6 + 0.28 * len(names)))
    fig, axes = plots.panels(len(matrices), n_columns=2, height=height)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        mask_plots.matrix_map(matrix, ax, title=title, labels=names)
    yield html.figure(fig, f"{run.id}: pairs of agents; independent random masks are 0.50 apart.")


def _returns(metrics: pd.DataFrame, summaries: pd.DataFrame) -> Iterator[str]:
    yield html.table(stats.final_table(summaries))
    yield html.note(
        "Mean of the final greedy return with its 95 % interval (Student's t) and interquartile mean; n seeds."
    )
    tasks = list(summaries["task"].unique())
    curves, styles = stats.curves(metrics, RETURN), style.variant_styles(summaries["variant"])
    fig, axes = plots.panels(len(tasks), n_columns=min(len(tasks), 2), height=2.3)
    for ax, task in zip(axes, tasks, strict=True):
        plots.learning_curves(curves[curves["task"] == task], ax, title=task, styles=styles)
    yield html.figure(
        plots.shared_legend(fig), "Greedy return over training: mean over seeds; from three on, 95 % interval."
    )
    heights = 0.6 + 0.31 * summaries.groupby("task", sort=False)["variant"].nunique()
    fig, axes = plots.panels(len(tasks), n_columns=1, height=list(heights))
    for ax, task in zip(axes, tasks, strict=True):
        comparison_plots.final_returns(summaries[summaries["task"] == task], ax=ax, title=task)
    yield html.figure(fig, "Final return: mean and, from three seeds on, interval (filled); single seeds (open).")


def _differences(summaries: pd.DataFrame) -> Iterator[str]:
    reference = next((m for m in REFERENCES if m in set(summaries["method"])), None)
    if reference is None or summaries["variant"].nunique() < 2:
        return
    differences = stats.difference_table(summaries, reference)
    order = [name for name in style.variant_styles(summaries["variant"]) if name in set(differences["variant"])]
    for task in differences["task"].unique():
        rows = differences[differences["task"] == task]
        ax = plots.new_axes(height=0.6 + 0.2 * len(rows))
        comparison_plots.effect_marks(rows, ax, [name for name in order if name in set(rows["variant"])], title=task)
        ax.set_xlabel(f"return − {style.method_style(reference).label}")
        yield html.figure(ax, f"{task}: difference to {reference} with its 95 % interval; 0 is no difference.")
    yield html.table(differences)


def _all_pairs(found: Sequence[Run]) -> Iterator[str]:
    stored = [run for run in found if (run.path / "policy.npz").is_file()]
    if not stored:
        raise RunError("No run has stored its policy (runs that were imported have none).")
    pairs = tables.run_pairs(stored)
    means = pairs.groupby(["task", "variant", "run"], as_index=False)[["hamming", "greedy", "js"]].mean()
    yield html.table(means.groupby(["task", "variant"], as_index=False)[["hamming", "greedy", "js"]].mean())
    yield html.note(
        "Means over pairs of agents and seeds: distance of their masks, share of different greedy actions on common "
        "observations, and Jensen-Shannon distance of their policies."
    )


def _representative(found: Sequence[Run], task: str) -> Run | None:
    """A run of the task whose masks are drawn: learned ones first, then the least seed; None without stored masks."""
    stored = [r for r in found if r.config["task"] == task and results.has_patterns(r)]
    order = {"k24": 0, "k24-alpha": 1}
    return min(stored, key=lambda r: (order.get(r.config["method"], 2), r.config["seed"], r.id), default=None)


def _by_task(found: Sequence[Run]) -> list[list[Run]]:
    tasks = dict.fromkeys(run.config["task"] for run in found)
    return [[run for run in found if run.config["task"] == task] for task in tasks]


def _run_table(found: Sequence[Run], summaries: pd.DataFrame) -> pd.DataFrame:
    columns = [c for c in ("task", "variant", "seed", RETURN, "t_env", "seconds") if c in summaries]
    table = summaries[["run", *columns]].replace({np.nan: None})
    commits = {
        run.id: next((a["commit"][:12] for a in provenance.read(run.path)[::-1] if a.get("commit")), "")
        for run in found
    }
    return table.assign(commit=table["run"].map(commits))


def _attempts(folder: Path) -> list[dict[str, str]]:
    lines = provenance.read(folder)
    return [
        {"attempt": str(k + 1)} | {key: as_text(value) for key, value in line.items()} for k, line in enumerate(lines)
    ]


def _errors(statuses: Sequence[Any]) -> list[str]:
    return [html.note(f"failed: {s.path.name}: {s.error}", "failed") for s in statuses if s.state == "failed"]
