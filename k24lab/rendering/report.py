"""`k24lab report WHAT`: a run or a group of runs as one HTML page that needs nothing beside it."""

import base64
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from k24lab.analysis.load import RETURN
from k24lab.analysis.references import known_returns
from k24lab.errors import RunError, RunWarning
from k24lab.lab import provenance
from k24lab.lab.find_runs import Run, find_groups, find_runs, read_json, read_run
from k24lab.lab.paths import figures_dir, runs_dir
from k24lab.lab.runs import atomic_write, find_folder, read_config
from k24lab.lab.status import as_text, group_statuses, own_settings, state_line, status_table

DYNAMICS = ("pattern_entropy", "mask_flip_rate", "pattern_mean_similarity", "train_eval_gap", "dead_units", "loss_td")
REFERENCES = ("random24", "fups", "fups-id", "nops")  # what others are compared with: the first that has runs
LAYER, ROWS, GROUPS = "fc2", 12, 6  # the corner of the masks that is drawn


class Part(NamedTuple):
    """A piece of a section; report.html knows how each kind is shown."""

    kind: str  # note, failed (text), table (DataFrame), pairs (names and values), figure (PNG in base 64)
    content: Any
    caption: str = ""  # of a figure


Sections = dict[str, list[Part]]  # by heading; one without parts is left out


def write_report(what: str, output: Path | None = None) -> Path:
    """Write the page of a run or a group, by its folder or name; returns its path.

    By default `report_<name>.html` in `figures_dir()`. Nothing is trained, and a page that is there is replaced whole.
    """
    group = next((g for g in (Path(what), runs_dir() / what) if any(g.glob("*/config.json"))), None)
    folder = (group or find_folder(what)).resolve()
    with style.paper_style():
        lead, sections = _group_page(folder) if group else _run_page(folder)
    target = output or figures_dir() / f"report_{folder.name}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(render_page(folder.name, lead, sections).encode())
    return target


def render_page(title: str, lead: str, sections: Sections) -> str:
    """The HTML; text is shown as it is, whatever a task, an error or a file is called."""
    environment = Environment(loader=PackageLoader("k24lab", "rendering"), autoescape=True)
    return environment.get_template("report.html").render(title=title, lead=lead, sections=sections)


def _run_page(folder: Path) -> tuple[str, Sections]:
    run = read_run(folder)
    settings = {key: as_text(value) for key, value in own_settings(read_config(folder)).items()}
    return state_line(folder), {
        "Settings": [Part("pairs", settings), Part("note", "Settings that are the method's defaults are left out.")],
        "At the end": _parts(_final_numbers, run),
        "Curves": _parts(_run_curves, run),
        "Dynamics": _parts(_dynamics, [run]),
        "Masks": _parts(_masks, run),
        "Similarity of agents": _parts(_similarity, run),
        "Where it comes from": [
            Part("pairs", {"attempt": k} | {key: as_text(value) for key, value in line.items()})
            for k, line in enumerate(provenance.read(folder), start=1)
        ],
    }


def _group_page(folder: Path) -> tuple[str, Sections]:
    statuses = group_statuses(folder)
    states = Counter(status.state for status in statuses)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    failed = [Part("failed", f"failed: {s.path.name}: {s.error}") for s in statuses if s.state == "failed"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RunWarning)
        study = _study_sections(folder)
    remarks = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, RunWarning))
    return f"{len(statuses)} runs: {counts}", {
        "Progress": [Part("table", pd.DataFrame(status_table(statuses))), *failed],
        "To bear in mind": [Part("note", text) for text in remarks],
        **study,
    }


def _study_sections(folder: Path) -> Sections:
    """What finished runs show; nothing if there is none."""
    try:
        found = find_groups([folder])
    except RunError as error:
        return {"Results": [Part("note", str(error))]}
    metrics, summaries = results.load_metrics(found), results.load_summaries(found)
    tasks = {task: [run for run in found if run.config["task"] == task] for task in summaries["task"].unique()}
    examples = [run for runs in tasks.values() if (run := _representative(runs))]
    return {
        "Returns": _parts(_returns, metrics, summaries),
        "Differences": _parts(_differences, summaries),
        "Dynamics": [part for runs in tasks.values() for part in _parts(_dynamics, runs)],
        "Masks": [part for run in examples for part in _parts(_masks, run)],
        "Similarity of agents": [
            *_parts(_all_pairs, found),
            *(part for run in examples for part in _parts(_similarity, run)),
        ],
        "Runs": [Part("table", _run_table(found, summaries))],
    }


def _parts(build: Callable[..., Iterator[Part]], *arguments: Any) -> list[Part]:
    """The parts of a section, or in their place what is missing (an imported run has no masks, say)."""
    try:
        return list(build(*arguments))
    except RunError as error:
        return [Part("note", str(error))]


def _figure(shown: Figure | Axes, caption: str) -> Part:
    """A figure (that of some axes) with how to read it; pyplot forgets the figure."""
    fig = shown if isinstance(shown, Figure) else shown.get_figure(root=True)
    assert fig is not None
    plt.close(fig)
    return Part("figure", base64.b64encode(style.render(fig, "png")).decode(), caption)


def _final_numbers(run: Run) -> Iterator[Part]:
    path = run.path / "summary.json"
    if not path.is_file():
        raise RunError("The run is not finished: curves and masks are those so far.")
    yield Part("pairs", {key: as_text(value) for key, value in read_json(path).items()})


def _run_curves(run: Run) -> Iterator[Part]:
    metrics, others = results.load_metrics([run]).dropna(subset=[RETURN]), _others(run)
    fig, (ax,) = plots.panels(1, height=2.3)
    if others:
        plots.learning_curves(stats.curves(results.load_metrics(others), RETURN), ax)
    ax.plot(metrics["t_env"], metrics[RETURN], color="black", linewidth=2, label="this run", zorder=3)
    ax.autoscale(axis="y")
    ax.set(xlabel="env steps", ylabel="test return")
    caption = f"Black: greedy episodes. Coloured: the {len(others)} other finished runs of its group in this task."
    yield _figure(plots.shared_legend(fig), caption)


def _others(run: Run) -> list[Run]:
    """Finished runs of the same task in the same group."""
    found = find_runs(run.path.parent, finished_only=False, task=run.config["task"])
    return [other for other in found if other.finished and other.id != run.id]


def _dynamics(runs: Sequence[Run]) -> Iterator[Part]:
    metrics = results.load_metrics(runs)
    shown = [name for name in DYNAMICS if name in metrics and metrics[name].notna().any()]
    if not shown:
        return
    fig, axes = plots.panels(len(shown), n_columns=3, height=1.7)
    for ax, name in zip(axes, shown, strict=True):
        plots.learning_curves(stats.curves(metrics, name), ax, ylabel=style.metric_label(name))
    task = runs[0].config["task"]
    yield _figure(
        plots.shared_legend(fig), f"{task}: masks settle where entropy, flip rate and train-eval gap fall to near 0."
    )


def _masks(run: Run) -> Iterator[Part]:
    snapshots = results.load_patterns(run)
    last = snapshots[max(snapshots)]
    layer = LAYER if LAYER in last else next(iter(last))
    title = style.run_title(run, f"layer {layer}")
    ax = mask_plots.mask_map(last[layer].index, rows=ROWS, groups=GROUPS, title=title)
    yield _figure(ax, f"{run.id}, layer {layer}: what each agent keeps of a corner of the shared weights.")
    table = tables.snapshot_table(snapshots)
    fig, axes = plots.panels(3, height=2.0)
    chance, undecided = {"independent masks": similarity.CHANCE_HAMMING}, {"undecided: ln 6": similarity.MAX_ENTROPY}
    plots.layer_lines(table, "hamming", axes[0], ylabel="Hamming distance", references=chance)
    plots.layer_lines(table, "entropy", axes[1], ylabel="pattern entropy (nats)", references=undecided)
    plots.layer_lines(table, "flip_rate", axes[2], ylabel="groups changed (share)")
    caption = "Over training: how far apart the masks are, how undecided, and how many groups change."
    yield _figure(plots.shared_legend(fig), caption)
    yield Part("table", table[table["t_env"] == max(snapshots)])


def _similarity(run: Run) -> Iterator[Part]:
    observed = results.load_policies(run)
    matrices = {}
    if results.has_patterns(run):
        index = similarity.all_layers(results.last_patterns(run)).index
        matrices["Hamming distance of masks"] = similarity.hamming_distance(index)
    matrices["different greedy actions"] = similarity.greedy_difference(*observed)
    names = results.mask_names(run)
    height = min(5.5, max(2.4, 0.6 + 0.28 * len(names)))
    fig, axes = plots.panels(len(matrices), n_columns=2, height=height)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        mask_plots.matrix_map(matrix, ax, title=title, labels=names)
    yield _figure(fig, f"{run.id}: pairs of agents; independent random masks are 0.50 apart.")


def _returns(metrics: pd.DataFrame, summaries: pd.DataFrame) -> Iterator[Part]:
    yield Part("table", stats.final_table(summaries))
    note = "Mean of the final greedy return with its 95 % interval (Student's t) and interquartile mean; n seeds."
    yield Part("note", note)
    tasks = list(summaries["task"].unique())
    curves, styles = stats.curves(metrics, RETURN), style.variant_styles(summaries["variant"])
    fig, axes = plots.panels(len(tasks), n_columns=min(len(tasks), 2), height=2.3)
    for ax, task in zip(axes, tasks, strict=True):
        known = known_returns(task)
        plots.learning_curves(curves[curves["task"] == task], ax, title=task, styles=styles, references=known)
    caption = "Greedy return over training: mean over seeds; from three on, 95 % interval. Grey: ends side by side."
    yield _figure(plots.shared_legend(fig), caption)
    heights = summaries.groupby("task", sort=False)["variant"].apply(comparison_plots.final_height)
    fig, axes = plots.panels(len(tasks), n_columns=1, height=list(heights))
    for ax, task in zip(axes, tasks, strict=True):
        runs = summaries[summaries["task"] == task]
        comparison_plots.final_returns(runs, ax=ax, title=task, references=known_returns(task))
    yield _figure(fig, "Final return: mean and, from three seeds on, interval (filled); single seeds (open).")


def _differences(summaries: pd.DataFrame) -> Iterator[Part]:
    reference = next((m for m in REFERENCES if m in set(summaries["method"])), None)
    if reference is None or summaries["variant"].nunique() < 2:
        return
    differences = stats.difference_table(summaries, reference)
    order = list(style.variant_styles(summaries["variant"]))
    for task in differences["task"].unique():
        rows = differences[differences["task"] == task]
        ax = plots.new_axes(height=0.6 + 0.2 * len(rows))
        comparison_plots.effect_marks(rows, ax, [name for name in order if name in set(rows["variant"])], title=task)
        ax.set_xlabel(f"return − {style.method_style(reference).label}")
        yield _figure(ax, f"{task}: difference to {reference} with its 95 % interval; 0 is no difference.")
    yield Part("table", differences)


def _all_pairs(found: Sequence[Run]) -> Iterator[Part]:
    stored = [run for run in found if (run.path / "policy.npz").is_file()]
    if not stored:
        raise RunError("No run has stored its policy (runs that were imported have none).")
    pairs = tables.run_pairs(stored)
    yield Part("table", pairs.groupby(["task", "variant"], as_index=False)[["hamming", "greedy"]].mean())
    note = "Means over pairs of agents and seeds: distance of masks, share of different greedy actions on common "
    yield Part("note", note + "observations.")


def _representative(runs: Sequence[Run]) -> Run | None:
    """The run whose masks are drawn: learned ones first, then the least seed; None without stored masks."""
    stored = [run for run in runs if results.has_patterns(run)]
    learned = ("k24", "k24-alpha")
    return min(stored, key=lambda r: (r.config["method"] not in learned, r.config["seed"], r.id), default=None)


def _run_table(found: Sequence[Run], summaries: pd.DataFrame) -> pd.DataFrame:
    columns = [c for c in ("run", "task", "variant", "seed", RETURN, "t_env", "seconds") if c in summaries]
    commits = {run.id: [a["commit"][:12] for a in provenance.read(run.path) if a.get("commit")] for run in found}
    return summaries[columns].assign(commit=[(commits[run] or [""])[-1] for run in summaries["run"]])
