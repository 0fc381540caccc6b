"""Sentences that notebooks make of runs: what they say, and what they must not say."""

import numpy as np
import pandas as pd
import pytest

from k24lab.analysis import answers, references
from study.protocol import TASKS
from study.references import TABLE


def test_no_difference_is_claimed_where_the_interval_holds_0():
    said = answers.compare({"k24": [2.9, 3.0, 2.95], "random24": [2.97, 2.93, 3.01]}, "k24", "random24")
    assert said == "K-2:4 2.95 [2.83, 3.07], random 2:4 2.97 [2.87, 3.07] over 3 seeds: no difference shown."


@pytest.mark.parametrize(
    ("a", "b", "word", "chance"), [("k24", "fups", "higher", "1.00"), ("fups", "k24", "lower", "0.00")]
)
def test_a_difference_is_shown_with_its_size_and_the_probability_of_improvement(a, b, word, chance):
    values = {"k24": [2.9, 3.0, 2.95], "fups": [1.2, 1.3, 1.25, 1.2, np.nan]}
    name = {"k24": "K-2:4", "fups": "shared"}[a]
    said = answers.compare(values, a, b)
    assert f" over {3 if a == 'k24' else 4} and {4 if a == 'k24' else 3} seeds: {name} is {word} by 1.71 [1.6" in said
    assert said.endswith(f"probability of improvement {chance} [{chance}, {chance}].")


@pytest.mark.parametrize("n", [1, 2])
def test_of_few_seeds_nothing_is_concluded(n):
    said = answers.compare({"k24": [3.0] * n, "fups": [1.0] * 5}, "k24", "fups")
    assert "nothing can be concluded" in said and "higher" not in said
    assert said.startswith("K-2:4 3.00, shared 1.00 [1.00, 1.00] over")


def test_numbers_have_three_digits_of_the_largest():
    assert answers.compare({"k24": [198.66] * 3, "fups": [13.2] * 3}, "k24", "fups").startswith("K-2:4 199 [199, 199]")
    assert answers.compare({"k24": [0.012] * 3, "fups": [0.011] * 3}, "k24", "fups").startswith("K-2:4 0.0120 [")
    assert answers.compare({"k24": [0.0] * 3, "fups": [0.0] * 3}, "k24", "fups").startswith("K-2:4 0.00 [")


@pytest.fixture
def summaries():
    rows = [
        {"task": task, "variant": variant, "test_return_mean": value}
        for task, base in (("a", 0.0), ("b", 10.0))
        for variant, ahead in (("k24", 2.0), ("k24 lr=0.1", 2.1), ("fups", 1.0), ("fups lr=0.1", 0.5))
        for value in (base + ahead - 0.1, base + ahead, base + ahead + 0.1)
    ]
    return pd.DataFrame(rows)


def test_every_variant_of_every_task_is_compared_with_the_reference_of_its_settings(summaries):
    lines = answers.compare_tasks(summaries, "fups").splitlines()
    pairs = [line.split(" over ")[0].split("[")[::1] for line in lines]
    assert len(lines) == 6 and all(line.startswith("- a: ") for line in lines[:3])
    assert "K-2:4 (lr=0.1) 2.10" in lines[1] and "shared (lr=0.1) 0.50" in lines[1], pairs
    assert "shared (lr=0.1) 0.50" in lines[2] and "shared 1.00" in lines[2]


def test_what_cannot_be_compared_is_said(summaries):
    assert (
        answers.compare_tasks(summaries[summaries["variant"] == "k24"], "nops").count("no run of separate networks")
        == 2
    )
    assert (
        answers.compare_tasks(summaries[summaries["variant"] == "k24"], "k24").count("no other method than K-2:4") == 2
    )


def test_over_all_tasks_a_lead_is_shown_where_the_interval_leaves_out_a_half(summaries):
    lines = answers.compare_overall(summaries, "k24").splitlines()
    assert "K-2:4 against shared, all tasks: probability of improvement 1.00 [1.00, 1.00]: ahead." in lines[1]
    assert "K-2:4 (lr=0.1)" in lines[0] and lines[0].endswith("no difference shown.")
    single = summaries.groupby(["task", "variant"], as_index=False).first()
    assert "nothing can be concluded" in answers.compare_overall(single, "k24")


def test_one_run_is_set_beside_what_is_known_of_its_task():
    run = pd.Series({"task": "rolenav", "method": "k24", "test_return_mean": 2.953})
    said = answers.describe_run(run)
    assert said.startswith(
        "K-2:4 on rolenav: 2.95, random actions -0.06, bound if all act alike 1.45, scripted team 3.00."
    )
    assert said.endswith("nothing can be concluded about the method.")


@pytest.mark.parametrize(
    ("hamming", "entropy", "flips", "said"),
    [
        (
            0.56,
            0.05,
            0.01,
            "further apart than independent ones: Hamming distance 0.56, of those 0.50. They have settled",
        ),
        (
            0.505,
            0.05,
            0.2,
            "as far apart as independent ones: Hamming distance 0.51, of those 0.50. They have not settled",
        ),
        (0.2, 0.3, 0.0, "nearer than independent ones: Hamming distance 0.20, of those 0.50. They have not settled"),
    ],
)
def test_masks_are_said_to_be_apart_and_settled_by_their_last_snapshot(hamming, entropy, flips, said):
    last = {"t_env": 9, "layer": "all", "hamming": hamming, "entropy": entropy, "flip_rate": flips}
    others = [last | {"t_env": 1, "hamming": 0.1, "entropy": 1.7}, last | {"layer": "fc1", "hamming": 0.9}]
    assert f"The masks of two agents are {said}" in answers.describe_masks(pd.DataFrame([last, *others]))


def test_known_returns_are_those_that_the_study_measured():
    measured = pd.read_csv(TABLE)
    measured.index = pd.MultiIndex.from_arrays(
        [measured["task"].map(lambda t: TASKS[t]["task"]), measured["reference"]]
    )
    names = {references.RANDOM: "random", references.SCRIPTED: "scripted"}
    for task in references.KNOWN:
        for name, value in references.known_returns(task).items():
            if name != references.ALIKE:
                row = measured.loc[task, names[name]]
                assert value == pytest.approx(row["mean"], abs=0.01 + row["standard_error"])
    assert references.known_returns("rolenav:n_agents=5") == {}
