"""Tables of the study of docs/protocol.md, from figures/study/ and figures/tuning/, as Markdown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats
from tables import estimate, label, markdown_table, number, plus_minus, read, select, shown_difference, with_ends

SCORES = {"mean": "mean score", "IQM": "interquartile mean", "area under curve": "area under the curve"}
Pair = tuple[str, str]


def study_returns(
    readings: Mapping[str, str], tasks: Mapping[str, str], digits: Mapping[str, int] | None = None
) -> str:
    """Final returns of the study, the best methods first; a column per task (name -> heading) and reading.

    `readings`: what is added to the heading; `digits`: of tasks whose returns are not given with two.
    """
    columns = {(task, reading): heading + end for task, heading in tasks.items() for reading, end in readings.items()}
    found = read("study/returns.csv").set_index(["variant", "task", "reading"]).to_dict("index")
    rows = []
    for method in study_methods():
        cells = {column: found.get((method, *column)) for column in columns}
        if any(cells.values()):
            shown = [plus_minus(row, (digits or {}).get(task, 2)) if row else "" for (task, _), row in cells.items()]
            rows.append([label(method), *shown])
    return markdown_table(["method", *columns.values()], rows)


def study_methods() -> list[str]:
    """The methods of the study, the best mean score over its tasks first."""
    best = select("study/aggregates.csv", aggregate="mean").sort_values("value", ascending=False)
    return [str(method) for method in best["variant"]]


def study_costs(reading: str, reference: str, task: str) -> str:
    """Every method's score over all tasks, its probability of beating the reference method, and its costs in a task."""
    costs = read("study/costs.csv").set_index("method").to_dict("index")
    measured = select("study/returns.csv", reading=reading, task=task).set_index("variant")["kept_measured"]
    beats = read("study/improvement.csv").set_index("variant").to_dict("index")
    rows = []
    for method in study_methods():
        cost, kept = costs[method], costs[method]["kept"]
        scores = [estimate("study/aggregates.csv", "value", aggregate=name, variant=method) for name in SCORES]
        better = beats.get(method)
        rows.append(
            [
                label(method),
                *scores,
                with_ends(better["probability"], better["low"], better["high"]) if better else "",
                number(measured[method] if pd.isna(kept) else kept, 0, percent=True),
                number(cost["parameters"] / 1000, 0),
                number(cost["multiply_adds"] / 1000, 1),
                number(cost["bytes_alone"] / 1024, 1),
                number(cost["bytes_in_team"] / 1024, 1),
            ]
        )
    costly = ("weights used", "thousand parameters trained", "thousand multiply-adds", "KiB alone", "KiB in its team")
    return markdown_table(["method", *SCORES.values(), f"beats `{reference}`", *costly], rows)


def study_references(reading: str, tasks: Mapping[str, str], digits: Mapping[str, int] | None = None) -> str:
    """How far a task is from solved: random actions, one network for all, the best method, a scripted controller."""
    known = read("references/references.csv").set_index(["task", "reference"])["mean"]
    rows = []
    for task, heading in tasks.items():
        found = select("study/returns.csv", reading=reading, task=task).set_index("variant")["mean"]
        values = [known[task, "random"], found.get("fups"), found.max(), known.get((task, "scripted"))]
        shown = ["" if pd.isna(value) else number(value, (digits or {}).get(task, 2)) for value in values]
        rows.append([heading, *shown[:2], f"{shown[2]} (`{found.idxmax()}`)", shown[3]])
    return markdown_table(["task", "random actions", "one network for all", "best method", "scripted controller"], rows)


def study_differences(pairs: Sequence[Pair], tasks: Mapping[str, str]) -> str:
    """Differences of two methods, a row per task (name -> heading), with the number of seeds where the first is ahead.

    Bold where the interval leaves out 0; with a dagger where Holm's correction over this table leaves it so. The second
    method of a pair may be `better`: the better one of one network for all and separate networks.
    """
    found = read("study/differences.csv").set_index(["task", "variant", "reference"]).to_dict("index")
    sure = holm({key: p_value(row) for task in tasks for pair in pairs if (row := found.get(key := (task, *pair)))})

    def text(key: tuple[str, str, str]) -> str:
        row = found[key]
        return f"{shown_difference(row)}{'†' if key in sure else ''} {row['n_better']}/{row['n']}"

    header = ["task", *(f"`{a}` − better" if b == "better" else f"`{a}` − `{b}`" for a, b in pairs)]
    rows = [
        [heading, *(text(key) if (key := (task, *pair)) in found else "" for pair in pairs)]
        for task, heading in tasks.items()
    ]
    return markdown_table(header, rows)


def p_value(row: Mapping[str, Any]) -> float:
    """Of Student's t test, seed by seed, whose 95 % interval a row of differences.csv has."""
    dof, half = row["n"] - 1, (row["high"] - row["low"]) / 2
    size = abs(row["difference"]) / half if half else math.inf
    return float(2 * stats.t.sf(size * stats.t.ppf(0.975, dof), dof))


def holm(p_values: Mapping[Any, float]) -> set[Any]:
    """Which of several hypotheses are rejected at 5 % for all of them together (Holm, 1979)."""
    rejected: set[Any] = set()
    for key, p in sorted(p_values.items(), key=lambda pair: pair[1]):
        if p * (len(p_values) - len(rejected)) >= 0.05:
            break
        rejected.add(key)
    return rejected


def study_choices(tasks: Mapping[str, str], digits: Mapping[str, int] | None = None) -> str:
    """What the tuning chose, and its mean return over both seeds there: of all tasks, and of each (name -> heading).

    `digits`: as of `study_returns`.
    """
    table = read("tuning/candidates.csv").fillna({"setting": ""})
    table["text"] = [
        f"{lr:g}" + (f", `{setting}`" if setting else "")
        for lr, setting in zip(table["lr"], table["setting"], strict=True)
    ]
    table["shown"] = [
        number(mean, (digits or {}).get(task, 2)) for task, mean in zip(table["task"], table["mean"], strict=True)
    ]
    one = table[table["one"]].set_index(["method", "task"])
    own = table[table["of_task"]].set_index(["method", "task"])
    rows = []
    for method in dict.fromkeys(table["method"]):
        everywhere = f"{one['text'][method].iloc[0]}: {', '.join(one['shown'][method, task] for task in tasks)}"
        rows.append(
            [
                label(method),
                everywhere,
                at_an_edge(table[table["method"] == method]),
                *(f"{own['text'][method, t]}: {own['shown'][method, t]}" for t in tasks),
            ]
        )
    header = ["method", "one setting: returns in the three tasks", "at an edge of its space", *tasks.values()]
    return markdown_table(header, rows)


def at_an_edge(candidates: pd.DataFrame) -> str:
    """Which values of a method's one setting are the smallest or largest that was tried."""
    tried = [{"lr": lr} | settings(text) for lr, text in zip(candidates["lr"], candidates["setting"], strict=True)]
    one = tried[candidates["one"].to_list().index(True)]
    spans = {key: {each[key] for each in tried} for key in one}
    edges = [key for key, span in spans.items() if len(span) > 1 and one[key] in (min(span), max(span))]
    return ", ".join(f"`{key}`" for key in edges) or "none"


def settings(text: str) -> dict[str, float]:
    """`threshold_scale=2, own_lr_factor=20` as a dictionary."""
    return {key: float(value) for key, value in (part.split("=") for part in text.split(", ") if part)}
