"""Tables of the study of docs/protocol.md, from figures/study/ and figures/tuning/, as Markdown."""

from collections.abc import Mapping, Sequence

import pandas as pd
from tables import estimate, label, markdown_table, number, plus_minus, read, select, shown_difference, with_ends


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
    """The methods of the study, the best interquartile mean first."""
    best = select("study/aggregates.csv", aggregate="IQM").sort_values("value", ascending=False)
    return [str(method) for method in best["variant"]]


def study_costs(reading: str, reference: str) -> str:
    """Every method's score over all tasks, its probability of beating the reference method, and what an agent costs."""
    costs = read("study/costs.csv").set_index("method").to_dict("index")
    measured = select("study/returns.csv", reading=reading).groupby("variant")["kept_measured"].mean()
    beats = read("study/improvement.csv").set_index("variant").to_dict("index")
    rows = []
    for method in study_methods():
        cost, kept = costs[method], costs[method]["kept"]
        score = estimate("study/aggregates.csv", "value", aggregate="IQM", variant=method)
        better = beats.get(method)
        rows.append(
            [
                label(method),
                score,
                with_ends(better["probability"], better["low"], better["high"]) if better else "",
                number(measured[method] if pd.isna(kept) else kept, 0, percent=True),
                number(cost["multiply_adds"] / 1000, 1),
                number(cost["bytes_alone"] / 1024, 1),
                number(cost["bytes_in_team"] / 1024, 1),
            ]
        )
    costly = ("weights kept", "thousand multiply-adds", "KiB alone", "KiB in its team")
    return markdown_table(["method", "interquartile mean", f"beats `{reference}`", *costly], rows)


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


def study_differences(pairs: Sequence[tuple[str, str]], tasks: Mapping[str, str]) -> str:
    """Differences of two methods, a row per task (name -> heading); bold where the interval leaves out 0.

    The second method of a pair may be `better`: the better one of one network for all and separate networks.
    """
    found = read("study/differences.csv").set_index(["task", "variant", "reference"]).to_dict("index")

    header = ["task", *(f"`{a}` − better" if b == "better" else f"`{a}` − `{b}`" for a, b in pairs)]
    rows = [
        [heading, *(shown_difference(found[task, *pair]) if (task, *pair) in found else "" for pair in pairs)]
        for task, heading in tasks.items()
    ]
    return markdown_table(header, rows)


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
            [label(method), everywhere, *(f"{own['text'][method, t]}: {own['shown'][method, t]}" for t in tasks)]
        )
    return markdown_table(["method", "one setting: returns in the three tasks", *tasks.values()], rows)
