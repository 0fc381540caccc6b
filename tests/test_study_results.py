"""Tables and figures of the study's report, from summaries that are made up here."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import study_tables
import tables

from k24lab.analysis.stats import difference_interval, mean_interval
from k24lab.errors import RunError
from k24lab.inference.costs import agent_layers
from k24lab.lab.runs import run_folder
from study import report, results
from study.protocol import SEEDS, TUNING_TASKS

METHODS = {"fups": 2.5, "fups-id": 6.0, "k24": 7.5, "kaleidoscope-half": 7.0, "nops": 8.0}  # and their returns
SPARSITY = {"fc1": 0.5, "fc2": 0.25, "fc3": 0.0}


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """A report of two tasks, of which one was tuned; settings 1 for all tasks and 4 for RoleNav with 8 agents."""
    monkeypatch.setattr(report, "TUNING", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    rows = [
        {"method": method, "task": task, "one": k == 1, "of_task": k == (4 if task == "rolenav8" else 1)}
        for method in METHODS
        for task in TUNING_TASKS
        for k in range(9)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "candidates.csv", index=False)
    for task in ("rolenav3", "rolenav8"):
        lines = [line(task, method, k, seed) for method, _, k in report.choices(task) for seed in range(SEEDS[task])]
        report.summaries(task).parent.mkdir()
        report.summaries(task).write_text("".join(json.dumps(each) + "\n" for each in lines))
    return tmp_path


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Tables of pages are made from this folder."""
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    tables.read.cache_clear()
    yield tmp_path
    tables.read.cache_clear()


def line(task, method, k, seed):
    """The summary of a run whose return says who made it: 0.1 a candidate, 0.01 a seed."""
    config = report.report_run(task, method, k, seed)
    value = METHODS[method] + 0.1 * k + 0.01 * seed
    curve = {"t_env": [0, config.t_max], "test_return_mean": [0.0, value]}
    measured = {f"sparsity_layer_{name}": share for name, share in SPARSITY.items() if method != "nops"}
    run = {"run": run_folder(config, "any").name, "test_return_mean": value, "evaluations": curve}
    return {**vars(config), **run, **measured}


def test_each_reading_has_the_runs_of_its_setting(reported):
    table = results.returns_table(results.whole_report()).set_index(["task", "reading", "variant"])
    assert len(table) == 15 and set(table["n"]) == {10}
    seeds = 0.01 * np.arange(10).mean()
    assert table.loc[("rolenav3", report.ONE, "k24"), "mean"] == pytest.approx(7.5 + 0.1 + seeds)
    assert table.loc[("rolenav8", report.OF_TASK, "k24"), "mean"] == pytest.approx(7.5 + 0.4 + seeds)
    assert ("rolenav3", report.OF_TASK) not in {index[:2] for index in table.index}


def test_what_kaleidoscope_keeps_is_measured(reported):
    table = results.returns_table(results.whole_report(["rolenav8"])).set_index("variant")
    layers = agent_layers(*results.sizes("rolenav8")[:3])
    dropped = 0.5 * layers[0].weights + 0.25 * layers[3].weights
    share = 1 - dropped / sum(layer.weights for layer in layers)
    assert table.loc["kaleidoscope-half", "kept_measured"].to_list() == pytest.approx([share] * 2)
    assert table.loc["k24", "kept_measured"].isna().all()  # known without measuring


def test_an_agent_alone_reads_its_packed_matrices_and_its_part_of_a_team_is_less_where_they_are_common():
    costs = results.cost_table().set_index("method")
    assert costs.loc["k24", "bytes_alone"] < 0.6 * costs.loc["nops", "bytes_alone"]
    assert costs.loc["k24", "bytes_in_team"] == pytest.approx(costs.loc["k24", "bytes_alone"], rel=0.05)
    assert costs.loc["gains24", "bytes_in_team"] < 0.3 * costs.loc["gains24", "bytes_alone"]


def test_everything_is_written_from_what_is_there(reported):
    paths = results.write_results(reported / "study")
    names = {path.name for path in paths}
    assert {"returns.csv", "aggregates.csv", "costs.csv", "score_and_cost.png", "curves.pdf"} <= names
    better = pd.read_csv(reported / "study" / "improvement.csv").set_index("variant")["probability"]
    assert better.to_dict() == {"fups": 0.0, "k24": 1.0, "kaleidoscope-half": 1.0, "nops": 1.0}
    scores = pd.read_csv(reported / "study" / "aggregates.csv").set_index(["aggregate", "variant"])["value"]
    assert scores["IQM"].idxmax() == "nops" and scores[("mean", "nops")] == pytest.approx(1.0)


def test_methods_are_compared_with_references_and_with_the_better_of_shared_and_separate():
    rows = [
        {"task": task, "variant": method, "seed": seed, "test_return_mean": value + noise}
        for task, shared in (("a", 2.0), ("b", 5.0))
        for method, value in {"fups": shared, "nops": 3.0, "gains24": 4.0, "k24": 4.5}.items()
        for seed, noise in enumerate((-0.1, 0.1))
    ]
    table = results.differences(pd.DataFrame(rows)).set_index(["task", "variant", "reference"])["difference"]
    expected = {("gains24", "better"): (1.0, -1.0), ("k24", "better"): (1.5, -0.5), ("k24", "gains24"): (0.5, 0.5)}
    for pair, values in expected.items():
        assert [table["a", *pair], table["b", *pair]] == pytest.approx(values)
    assert {name for _, name, reference in table.index if reference == "better"} == {"gains24", "k24"}
    assert {reference for _, _, reference in table.index} == {"better", "gains24", "fups", "nops"}


def test_methods_are_compared_seed_by_seed():
    rows = [
        {"task": "a", "variant": method, "seed": seed, "test_return_mean": 5 * seed + value}
        for method, values in {"fups": (1.0, 1.0), "k24": (1.9, 2.1), "gains24": (1.0, 1.0)}.items()
        for seed, value in enumerate(values)
    ]
    found = results.differences(pd.DataFrame(rows)).set_index(["variant", "reference"])
    for reference in ("fups", "better"):
        assert found.loc[("k24", reference), "difference"] == pytest.approx(1.0)
        assert 0 < found.loc[("k24", reference), "high"] - 1 < 2  # the luck of seed 1 drops out
    assert found.loc[("k24", "fups"), "n_better"] == 2 and ("k24", "k24") not in found.index


def test_one_method_far_behind_does_not_hide_what_the_others_differ_in(monkeypatch, tmp_path):
    means = {"fups": 8.5, "nops": 9.1, "k24": 9.2, "k24-literal": -0.2}
    rows = [("rolenav8", name, mean, mean - 0.1, mean + 0.1) for name, mean in means.items()]
    table = pd.DataFrame(rows, columns="task variant mean low high".split())
    drawn = []
    monkeypatch.setattr(results, "save_figure", lambda fig, *rest: drawn.append(fig) or {})
    results.draw_scores(table, tmp_path)
    results.draw_scores(table[table["variant"] != "k24-literal"], tmp_path)
    (left, right), texts = drawn[0].axes[0].get_xlim(), [text.get_text() for text in drawn[0].axes[0].texts]
    assert 7 < left < 8.4 and 9.3 < right < 9.5 and texts == [r"$\leftarrow$ -0.2", "scripted team"]
    assert drawn[1].axes[0].get_xlim()[0] > 8.2 and [text.get_text() for text in drawn[1].axes[0].texts] == []
    assert "outside: scripted team 8.03" in drawn[1].axes[0].get_xlabel()


def test_what_kaleidoscope_keeps_with_ids_counts_the_weights_that_read_them():
    rows = [{"agent_id": ids, "sparsity_layer_fc1": 1.0} for ids in (False, True)]
    without, with_ids = (results.measured_share(pd.DataFrame([row]), "rolenav8") for row in rows)
    obs_dim, hidden_dim, n_actions, n_agents = results.sizes("rolenav8")
    fc1, *others = agent_layers(obs_dim + n_agents, hidden_dim, n_actions)
    rest = sum(layer.weights for layer in others)
    assert with_ids == pytest.approx(rest / (rest + fc1.weights)) and with_ids < without


def test_how_much_of_the_difference_is_the_seed():
    noise = np.random.default_rng(0).normal(size=(3, 6))
    rows = [
        {"task": task, "variant": method, "seed": seed, "test_return_mean": share * 10 * seed + noise[k, seed]}
        for task, share in (("same", 1), ("own", 0))
        for k, method in enumerate(("fups", "nops", "k24"))
        for seed in range(6)
    ]
    again = [row | {"variant": "kaleidoscope-half"} for row in rows if row["variant"] == "k24"]  # the same runs
    found = results.seed_correlation(pd.DataFrame(rows + again)).set_index("task")["correlation"]
    table = np.corrcoef(noise)[np.triu_indices(3, k=1)]
    assert found["same"] > 0.95 and found["own"] == pytest.approx(table.mean())


def test_both_intervals_of_a_difference_are_there():
    rows = [
        {"task": "a", "variant": method, "seed": seed, "test_return_mean": value + 0.1 * (method == "k24") * seed**2}
        for method in ("fups", "k24")
        for seed, value in enumerate((0.0, 10.0, 20.0))
    ]
    row = results.differences(pd.DataFrame(rows)).set_index(["variant", "reference"]).loc[("k24", "fups")]
    low, high = difference_interval(np.array([0.0, 10.1, 20.4]), np.array([0.0, 10.0, 20.0]))[1:]
    assert (row["welch_low"], row["welch_high"]) == pytest.approx((low, high)) and low < row["low"] < row["high"] < high


def test_holm_rejects_less_than_every_test_alone():
    assert study_tables.holm({"a": 0.001, "b": 0.02, "c": 0.03}) == {"a", "b", "c"}
    assert study_tables.holm({"a": 0.001, "b": 0.03, "c": 0.04}) == {"a"}  # 2 * 0.03 is too much, and ends it
    assert study_tables.holm({"a": 0.02, "b": 0.9, "c": 0.9}) == set()
    values = np.array([0.1, 0.5, 0.9, 0.2])
    mean, low, high, n = mean_interval(values)
    row = {"n": int(n), "difference": float(mean), "low": float(low), "high": float(high)}
    assert study_tables.p_value(row) == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)


def test_choices_at_an_edge_of_their_space_are_named():
    def edge(*tried):
        rows = [{"lr": lr, "setting": setting, "one": k == 0} for k, (lr, setting) in enumerate(tried)]
        return study_tables.at_an_edge(pd.DataFrame(rows))

    assert edge((0.003, ""), (0.001, ""), (0.01, "")) == "none"
    assert edge((0.01, "a=5"), (0.003, "a=1"), (0.001, "a=20")) == "`lr`"
    assert edge((0.003, "a=2, b=20"), (0.001, "a=5, b=1"), (0.01, "a=5, b=20")) == "`a`, `b`"


def test_without_runs_the_command_is_named(reported):
    report.summaries("rolenav3").unlink()
    with pytest.raises(RunError, match="python -m study report"):
        results.whole_report(["rolenav3"])


def test_a_task_with_a_part_of_its_runs_is_left_out_and_named(reported, capsys):
    file = report.summaries("rolenav8")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert set(results.whole_report()["task"]) == {"rolenav3"}
    assert capsys.readouterr().out == "left out: rolenav8, which has 99 of 100 runs\n"


def test_pages_have_tables_of_the_study(reported, figures):
    results.write_results(reported / "study")
    header, _, *rows = study_tables.study_returns(
        {report.ONE: ""}, {"rolenav3": "three", "tag": "tag"}, {"rolenav3": 1}
    ).splitlines()
    assert header == "| method | three | tag |" and rows[0] == "| separate networks, `nops` | 8.1 ± 0.0 |  |"
    assert len(rows) == len(METHODS)
    both = {report.ONE: "", report.OF_TASK: ", own"}
    header, _, *rows = study_tables.study_returns(both, {"rolenav8": "eight"}).splitlines()
    assert header == "| method | eight | eight, own |" and "7.95 ± " in rows[1].split(" | ")[2]
    costs = study_tables.study_costs(report.ONE, "fups-id", "rolenav8").splitlines()[2:]
    cells = {row.split("`")[1]: row.split(" | ") for row in costs}
    assert cells["k24"][4] == "1.00 (1.00 to 1.00)" and cells["k24"][5] == "50 %" and cells["fups-id"][4] == ""
    assert cells["nops"][6] == "279"  # thousand parameters: eight networks
    found = pd.read_csv(reported / "study" / "returns.csv").set_index(["reading", "task", "variant"])
    kept = found.loc[(report.ONE, "rolenav8", "kaleidoscope-half"), "kept_measured"]
    assert cells["kaleidoscope-half"][5] == f"{100 * kept:.0f} %" and 0.9 < kept < 1
    assert float(cells["k24"][8]) < 0.6 * float(cells["nops"][8])
    header, _, row = study_tables.study_differences(
        [("k24", "better"), ("k24", "gains24")], {"rolenav3": "3"}
    ).splitlines()
    assert header == "| task | `k24` − better | `k24` − `gains24` |"
    assert row.startswith("| 3 | **−0.50 (−") and row.endswith("**† 0/10 |  |")


def test_pages_say_how_far_a_task_is_from_solved(reported, figures):
    results.write_results(reported / "study")
    (figures / "references").mkdir()
    known = [("rolenav3", "random", -0.06), ("rolenav3", "scripted", 3.0), ("rolenav8", "random", -0.15)]
    table = pd.DataFrame(known, columns=["task", "reference", "mean"])
    table.to_csv(figures / "references" / "references.csv", index=False)
    rows = study_tables.study_references(report.ONE, {"rolenav3": "3", "rolenav8": "8"}, {"rolenav8": 1}).splitlines()[
        2:
    ]
    assert rows == ["| 3 | −0.06 | 2.65 | 8.14 (`nops`) | 3.00 |", "| 8 | −0.1 | 2.6 | 8.1 (`nops`) |  |"]


def test_pages_have_what_the_tuning_chose(figures):
    means = {("rolenav8", 0.003): 7.25, ("rolenav8", 0.01): 6.5, ("tag", 0.003): 20.0, ("tag", 0.01): 33.5}
    best = {"rolenav8": 0.003, "tag": 0.01}
    common = {"method": "k24", "setting": "alpha_lr_factor=5"}
    rows = [
        {**common, "task": task, "lr": lr, "mean": mean, "one": lr == 0.01, "of_task": lr == best[task]}
        for (task, lr), mean in means.items()
    ]
    (figures / "tuning").mkdir()
    pd.DataFrame(rows).to_csv(figures / "tuning" / "candidates.csv", index=False)
    (row,) = study_tables.study_choices({"rolenav8": "8", "tag": "tag"}, {"tag": 1}).splitlines()[2:]
    assert row == (
        "| K-2:4, `k24` | 0.01, `alpha_lr_factor=5`: 6.50, 33.5 | `lr` "
        "| 0.003, `alpha_lr_factor=5`: 7.25 | 0.01, `alpha_lr_factor=5`: 33.5 |"
    )
