"""Many variants of one method side by side: what each changes, what it returns, how far apart its masks are."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from k24lab.analysis.load import NOT_A_VARIANT, Run, load_patterns, load_summaries, variants
from k24lab.analysis.similarity import hamming_distance, mean_pair
from k24lab.analysis.stats import final_table


def varying_fields(runs: Sequence[Run]) -> list[str]:
    """Config fields that are not the same in all runs, the seed and what defines no variant left out."""
    keys = runs[0].config.keys() - NOT_A_VARIANT - {"seed"}
    return [k for k in runs[0].config if k in keys and len({repr(run.config.get(k)) for run in runs}) > 1]


def layer_distances(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean Hamming distance of two agents' masks at the end of training: a line per run, a column per masked layer.

    Columns variant, run, then the layers; NaN for layers and runs without masks.
    """
    rows = []
    for run, variant in zip(runs, variants(runs), strict=True):
        row: dict[str, object] = {"variant": variant, "run": run.id}
        if any((run.path / "patterns").glob("[0-9]*.npz")):
            (layers,) = load_patterns(run, last_only=True).values()
            row |= {name: mean_pair(hamming_distance(patterns.index)) for name, patterns in layers.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def variant_table(runs: Sequence[Run], extras: Sequence[str] = ("train_eval_gap",)) -> pd.DataFrame:
    """One line per variant, best return first: the fields that vary, n seeds, mean return with its 95 % interval.

    Then the means of `extras` (logged quantities) and of the Hamming distance in every masked layer.
    """
    summaries = load_summaries(runs)
    table = final_table(summaries, by=("variant",)).drop(columns="iqm")
    fields = summaries.groupby("variant")[varying_fields(runs)].first()
    means = summaries.groupby("variant")[[name for name in extras if name in summaries]].mean()
    distances = layer_distances(runs).drop(columns="run").groupby("variant").mean()
    joined = table.set_index("variant").join(fields).join(means).join(distances)
    first = [*fields.columns, "n", "mean", "low", "high"]
    return joined[first + [c for c in joined if c not in first]].replace({np.nan: None}).reset_index()
