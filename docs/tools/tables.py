"""Numbers, tables and pictures of figures/ as Markdown, for the templates of the generated pages.

Paths are relative to figures/, and `**where` selects the rows of a table whose columns have these values (a list: one
of these). A number that is not there is an error.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from k24lab.analysis.stats import difference_interval, final_table, mean_interval
from k24lab.methods import METHODS

FIGURES = Path(__file__).resolve().parents[2] / "figures"
RETURNS = "05_ablations_table.csv"  # columns task, variant, n, mean, low, high, iqm
RUNS = "05_ablations_final.csv"  # columns task, variant, seed, test_return_mean


@cache
def read(path: str) -> pd.DataFrame:
    """A table (.csv), or the raw summaries of runs (.jsonl)."""
    file = FIGURES / path
    return pd.read_json(file, lines=True) if file.suffix == ".jsonl" else pd.read_csv(file)


def select(path: str, **where: Any) -> pd.DataFrame:
    """The rows of a table with these values; a `LookupError` if there are none."""
    frame = read(path)
    for column, value in where.items():
        if value is not None:
            frame = frame[frame[column].isin(value if isinstance(value, list) else [value])]
    if frame.empty:
        raise LookupError(f"figures/{path} has no row with {where}")
    return frame


def one_row(path: str, **where: Any) -> dict[str, Any]:
    """The only row of a table with these values."""
    rows = select(path, **where).to_dict("records")
    if len(rows) > 1:
        raise LookupError(f"figures/{path} has {len(rows)} rows with {where}")
    return rows[0]


def number(value: float, digits: int = 2, percent: bool = False) -> str:
    """A number with a real minus sign; "−0.00" is below 0, which matters at the end of an interval."""
    text = f"{100 * value if percent else value:,.{digits}f}".replace("-", "−")
    return f"{text} %" if percent else text


def with_ends(value: float, low: float, high: float, digits: int = 2) -> str:
    """A number and its interval: "2.00 (−0.09 to 4.09)"."""
    return f"{number(value, digits)} ({number(low, digits)} to {number(high, digits)})"


def shown_difference(row: Mapping[str, Any]) -> str:
    """A difference and its interval; bold where the interval leaves out 0."""
    text = with_ends(row["difference"], row["low"], row["high"])
    return f"**{text}**" if row["low"] * row["high"] > 0 else text


def plus_minus(row: Mapping[str, Any], digits: int = 2, percent: bool = False) -> str:
    """A mean and half of its interval: "2.96 ± 0.08"."""
    mean = number(row["mean"], digits, percent).removesuffix(" %")
    return f"{mean} ± {number((row['high'] - row['low']) / 2, digits, percent)}"


def cell(path: str, column: str, digits: int = 2, percent: bool = False, **where: Any) -> str:
    """One number of a table."""
    return number(one_row(path, **where)[column], digits, percent)


def average(path: str, column: str, digits: int = 2, percent: bool = False, **where: Any) -> str:
    """The mean of a column over rows, for example over runs; rows without a value do not count."""
    return number(select(path, **where)[column].mean(), digits, percent)


def span(path: str, column: str, digits: int = 2, percent: bool = False, **where: Any) -> str:
    """The smallest and the largest value of a column: "7.2 to 14.2"."""
    values = select(path, **where)[column]
    return f"{number(values.min(), digits, percent).removesuffix(' %')} to {number(values.max(), digits, percent)}"


def each(path: str, column: str, digits: int = 2, **where: Any) -> str:
    """All values of a column: "7.41 and 7.64"."""
    return " and ".join(number(value, digits) for value in select(path, **where)[column])


def estimate(path: str, column: str = "difference", digits: int = 2, scale: float = 1, **where: Any) -> str:
    """One number of a table with its interval; `scale=100` makes percentage points of shares."""
    row = one_row(path, **where)
    return with_ends(scale * row[column], scale * row["low"], scale * row["high"], digits)


def result(
    study: str, variant: str, task: str | None = None, digits: int = 2, table: str = RETURNS, **where: Any
) -> str:
    """The final return of a variant, mean and half of the interval."""
    return plus_minus(one_row(f"{study}/{table}", variant=variant, task=task, **where), digits)


def difference(
    study: str, variant: str, reference: str, task: str | None = None, other: str | None = None, digits: int = 2
) -> str:
    """Final return of a variant minus that of a reference (of the study `other`), with Welch's interval."""
    runs = select(f"{study}/{RUNS}", variant=variant, task=task)
    base = select(f"{other or study}/{RUNS}", variant=reference, task=task)
    return with_ends(*difference_interval(*(frame["test_return_mean"].to_numpy() for frame in (runs, base))), digits)


def _by_seed(study: str, variant: str, reference: str, other: str | None = None, **where: Any) -> pd.Series:
    """Final return of a variant minus that of a reference (of the study `other`), in each seed that both have."""
    runs, base = (
        select(f"{folder}/{RUNS}", variant=name, **where).set_index("seed")["test_return_mean"]
        for folder, name in ((study, variant), (other or study, reference))
    )
    return (runs - base).dropna()


def paired_difference(
    study: str, variant: str, reference: str, other: str | None = None, digits: int = 2, **where: Any
) -> str:
    """The same as `difference` between runs of the same seed, with Student's interval of these differences."""
    between = _by_seed(study, variant, reference, other, **where)
    mean, low, high, _ = (part.item() for part in mean_interval(between.to_numpy()))
    return with_ends(mean, low, high, digits)


def middle_difference(study: str, variant: str, reference: str, digits: int = 2, **where: Any) -> str:
    """The median over the seeds of these differences, which single runs that fail do not move."""
    return number(_by_seed(study, variant, reference, **where).median(), digits)


def signed_rank(study: str, variant: str, reference: str, digits: int = 3, **where: Any) -> str:
    """The p-value of Wilcoxon's signed-rank test, two-sided, that these differences are symmetric about 0."""
    return number(stats.wilcoxon(_by_seed(study, variant, reference, **where)).pvalue, digits)


def seeds_ahead(study: str, variant: str, reference: str, **where: Any) -> str:
    """In how many seeds a variant returns more than a reference does: "12 of 15"."""
    between = _by_seed(study, variant, reference, **where)
    return f"{(between > 0).sum()} of {len(between)}"


def label(variant: str, words: Mapping[str, str] | None = None) -> str:
    """A variant in `words` or as figures call it, with its name or settings as code."""
    method, _, settings = variant.partition(" ")
    codes = ", ".join(f"`{code.removesuffix('.0')}`" for code in settings.split()) or f"`{method}`"
    return f"{(words or {}).get(variant, METHODS[method].label)}, {codes}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def methods_table() -> str:
    """What figures and tables call each method."""
    return markdown_table(["name in figures", "method"], [[look.label, f"`{name}`"] for name, look in METHODS.items()])


def returns_table(
    study: str,
    digits: int = 2,
    table: str = RETURNS,
    metric: str | None = None,
    seed: list[int] | None = None,
    **where: Any,
) -> str:
    """All variants, the best first; with `metric` that share of the raw summaries, with `seed` these seeds alone."""
    if metric or seed:
        runs = select(f"{study}/05_ablations_runs.jsonl", seed=seed, **where)
        frame = final_table(runs, metric or "test_return_mean")
    else:
        frame = select(f"{study}/{table}", **where)
    rows = [
        [label(row["variant"]), str(row["n"]), plus_minus(row, digits, percent=bool(metric))]
        for row in frame.to_dict("records")
    ]
    return markdown_table(["method", "seeds", "win rate" if metric else "final return"], rows)


def compare(
    columns: Mapping[str, tuple[str, str, str | None, int]],
    variants: Sequence[str],
    words: Mapping[str, str] | None = None,
    turned: bool = False,
) -> str:
    """Final returns of variants in several studies, with the number of seeds in brackets.

    `columns`: heading -> study, table, task (or None), digits. With `turned` the studies are rows and the variants
    columns. A variant that a study lacks leaves an empty cell.
    """
    lines = []
    for heading, (study, table, task, digits) in columns.items():
        found = select(f"{study}/{table}", task=task).set_index("variant").to_dict("index")
        rows = [found.get(variant) for variant in variants]
        lines.append([heading, *(f"{plus_minus(row, digits)} ({row['n']})" if row else "" for row in rows)])
    header = ["method", *(label(variant, words) for variant in variants)]
    if turned:
        return markdown_table(["setting", *header[1:]], lines)
    first, *others = zip(header, *lines, strict=True)
    return markdown_table(first, others)


def differences(study: str, tasks: Mapping[str, str], words: Mapping[str, str]) -> str:
    """Every variant against the study's reference, a column per task; bold where the interval leaves out 0."""
    groups = read(f"{study}/05_ablations_differences.csv").groupby("task")
    tables = [groups.get_group(task).set_index("variant") for task in tasks]

    order = tables[0].sort_values("difference").index
    rows = [[label(variant, words), *(shown_difference(table.loc[variant]) for table in tables)] for variant in order]
    return markdown_table(["variant", *tasks.values()], rows)


def pivot(path: str, rows: str, columns: str, value: str, suffix: str = "", digits: int = 2, **where: Any) -> str:
    """One number per pair of values of two columns; the lists of these two in `where` give the order."""
    table = select(path, **where).pivot(index=rows, columns=columns, values=value)
    lines = [
        [str(name), *(number(table.loc[name, column], digits) + suffix for column in where[columns])]
        for name in where[rows]
    ]
    return markdown_table([f"{rows} \\ {columns}", *map(str, where[columns])], lines)


def csv_table(path: str, columns: Mapping[str, str], formats: Mapping[str, str] | None = None, **where: Any) -> str:
    """Columns of a table under new headings; `formats` are Python's, for example ".1%" (numbers: ".2f")."""

    def text(column: str, value: Any) -> str:
        if isinstance(value, str):
            return label(value) if column == "variant" and value.split()[0] in METHODS else value
        shown = "" if pd.isna(value) else format(value, (formats or {}).get(column, ".2f"))
        return shown.replace("-", "−").replace("%", " %")

    rows = [[text(column, row[column]) for column in columns] for row in select(path, **where).to_dict("records")]
    return markdown_table(list(columns.values()), rows)


def figure(path: str, caption: str) -> str:
    """A picture of figures/ with its caption."""
    if not (FIGURES / path).is_file():
        raise LookupError(f"figures/{path} does not exist")
    return f"![{caption}](../figures/{path})\n\n*{caption}*"
