r"""Tables for LaTeX (`\usepackage{booktabs}`): plain text that needs no other package and never changes by itself."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from k24lab.analysis.stats import difference_interval, mean_interval
from k24lab.analysis.style import method_style, save_text, variant_styles

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "α": r"$\alpha$"}
_SPECIAL |= {char: "\\" + char for char in "&%$#_{}"}


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda match: _SPECIAL[match.group()], text)


def booktabs(table: pd.DataFrame) -> str:
    """A `tabular` of cells that are LaTeX already; the first column is left-aligned, the others right."""
    spec = "l" + "r" * (len(table.columns) - 1)
    rows = [list(table.columns), *table.to_numpy().tolist()]
    lines = [" & ".join(map(str, row)) + r" \\" for row in rows]
    body = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}", ""])


def return_table(
    summaries: pd.DataFrame, value: str = "test_return_mean", names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Variants by tasks, each cell `mean ± half of the 95 % interval`, as LaTeX.

    The best mean of a task is bold only if its difference from every other variant there has an interval that leaves
    out 0. A cell of fewer than two runs has no interval; one without runs is a dash.
    """
    scores = summaries.dropna(subset=[value])
    styles = variant_styles(scores["variant"].unique())
    table = pd.DataFrame({"method": [escape(style.label) for style in styles.values()]})
    for task in scores["task"].unique():
        rows = scores[scores["task"] == task]
        groups = {v: rows.loc[rows["variant"] == v, value].to_numpy(dtype=float) for v in styles}
        best = _clear_winner(groups)
        cells = [_cell(groups[v], bold=v == best) for v in styles]
        table[escape((names or {}).get(task, task))] = cells
    return table


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """`deploy.methods.method_costs` as LaTeX: a dash where training decides."""
    kept = ["--" if np.isnan(share) else f"{share:.2f}" for share in costs["kept"]]
    return pd.DataFrame(
        {
            "method": [escape(method_style(name).label) for name in costs["method"]],
            "parameters": [f"{n:,}" for n in costs["parameters"]],
            "weights kept": kept,
            "multiply-adds": [f"{n:,}" for n in costs["multiply_adds"]],
            "memory (kB)": [f"{n / 1000:.1f}" for n in costs["memory_bytes"]],
        }
    )


def _clear_winner(groups: Mapping[str, np.ndarray]) -> str | None:
    """The variant whose mean is above every other's by an interval that leaves out 0."""
    means = {name: values.mean() for name, values in groups.items() if values.size}
    best = max(means, key=means.__getitem__)
    others = [difference_interval(groups[best], groups[name])[1] for name in means if name != best]
    return best if others and min(others) > 0 else None  # a NaN is not above 0


def _cell(values: np.ndarray, bold: bool) -> str:
    if not values.size:
        return "--"
    estimate = mean_interval(values)
    mean = f"{estimate.mean.item():.2f}"
    text = rf"\mathbf{{{mean}}}" if bold else mean
    if np.isnan(estimate.low.item()):
        return f"${text}$"
    return rf"${text} \pm {estimate.mean.item() - estimate.low.item():.2f}$"


def save_tex(table: pd.DataFrame, name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    r"""Write `name.tex`, which `\input` takes, under the same rules as `style.save_figure`."""
    return save_text(booktabs(table), f"{name}.tex", folder)
