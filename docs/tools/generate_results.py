"""Write the PAGES of docs/ from docs/tools/*.md.jinja and figures/: no number is typed by hand.

`python docs/tools/generate_results.py` writes the pages; with `--check` it only compares and fails if one differs.
The functions in HELPERS are what the templates call.
"""

import sys
from pathlib import Path

import jinja2
import pandas as pd
import study_tables
import tables
from tables import estimate, label, markdown_table, read, select, with_ends

DOCS = Path(__file__).resolve().parents[1]
PAGES = ("results", "first_studies", "ablations", "performance")
# What the kernels of a measurement were built for, by `k24lab.ops.library.describe`.
INSTRUCTIONS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable kernels", "torch": "no kernels"}


def aggregates_table() -> str:
    """Every method over several tasks, the best interquartile mean first."""
    names = {"IQM": "interquartile mean", "mean": "mean", "area under curve": "area under the curve"}
    best = select("paper/08_paper_figures_aggregates.csv", aggregate="IQM").sort_values("value", ascending=False)
    beaten = read("paper/08_paper_figures_improvement.csv")["reference"].to_list()
    rows = []
    for variant in best["variant"]:
        where = {"path": "paper/08_paper_figures_aggregates.csv", "column": "value", "variant": variant}
        path = "paper/08_paper_figures_improvement.csv"
        last = estimate(path, "probability", reference=variant) if variant in beaten else ""
        rows.append([label(variant), *(estimate(**where, aggregate=name) for name in names), last])
    return markdown_table(["method", *names.values(), "probability that `k24` beats it"], rows)


def peers_measured() -> pd.DataFrame:
    """What `benchmarks/peers.py` measured: `where` is the instruction set, and how many times it was measured later."""
    table = read("peers/peers.csv").fillna("")
    later = table.groupby(["kernels", "work", "ours", "theirs"]).cumcount(ascending=False)
    return table.assign(where=list(zip(table["kernels"], later, strict=True)))


def measurement(kernels: str, later: int) -> str:
    """Name of a measurement with an instruction set that was measured again `later` times."""
    return INSTRUCTIONS[kernels] + (f", {later} before" if later > 1 else ", before" if later else "")


def peers_table() -> str:
    """Speeds beside others, a column for each measurement."""
    table, pair = peers_measured(), ["work", "ours", "theirs"]
    table["speed"] = [with_ends(*ends) for ends in zip(table["ratio"], table["low"], table["high"], strict=True)]
    speeds = table.pivot(index=pair, columns="where", values="speed").fillna("")
    rows, last = [], ""
    for row in table.drop_duplicates(pair, keep="last").to_dict("records"):
        work = f"{row['work']}; {'one core' if row['cores'] == 1 else 'two cores'}"
        found = speeds.loc[row["work"], row["ours"], row["theirs"]].to_list()
        rows.append(["" if work == last else work, row["ours"], row["theirs"], row["version"], *found])
        last = work
    measured = [f"times as fast, {measurement(*where)}" for where in speeds.columns]
    return markdown_table(["work", "k24lab", "beside", "version", *measured], rows)


def peers_machine() -> str:
    """Where and when each column of `peers_table` was measured."""
    places = peers_measured().groupby(["where", "machine"])["date"].agg(["min", "max"]).reset_index()
    return "; ".join(
        f"{row['machine']} ({measurement(*row['where'])}), {' to '.join(dict.fromkeys([row['min'], row['max']]))}"
        for row in places.to_dict("records")
    )


HELPERS = (
    aggregates_table,
    peers_machine,
    peers_table,
    tables.average,
    tables.cell,
    tables.compare,
    tables.csv_table,
    tables.difference,
    tables.differences,
    tables.each,
    tables.estimate,
    tables.figure,
    tables.methods_table,
    tables.middle_difference,
    tables.paired_difference,
    tables.pivot,
    tables.result,
    tables.returns_table,
    tables.seeds_ahead,
    tables.signed_rank,
    tables.span,
    study_tables.study_choices,
    study_tables.study_costs,
    study_tables.study_differences,
    study_tables.study_references,
    study_tables.study_returns,
)


def render(page: str) -> str:
    """A page of PAGES."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.globals.update({helper.__name__: helper for helper in HELPERS})
    return environment.from_string((DOCS / "tools" / f"{page}.md.jinja").read_text()).render()


def main() -> None:
    """Write the pages, or compare them."""
    for page in PAGES:
        text, path = render(page), DOCS / f"{page}.md"
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"docs/{page}.md is not what figures/ gives: run python docs/tools/generate_results.py")


if __name__ == "__main__":
    main()
