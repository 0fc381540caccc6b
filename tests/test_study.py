"""The protocol of the study: its search spaces, and what its tuning chooses from returns."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from k24lab.errors import RunError
from k24lab.lab.grid import load_grid
from k24lab.lab.runs import run_folder
from k24lab.lab.unused_settings import same_run_key, unused_fields
from k24lab.methods import METHODS
from study import report, store, tuning
from study.__main__ import main
from study.protocol import (
    LEARNING_RATES,
    MORE_LEARNING_RATES,
    STUDIED,
    TASKS,
    TUNING_SEEDS,
    TUNING_TASKS,
    candidates,
    first_round,
    second_round,
    study_run,
)

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
A = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9])
B = np.array([9.0, 2, 3, 4, 5, 6, 7, 1, 8])


@pytest.mark.parametrize("method", STUDIED)
def test_every_method_has_nine_candidates_that_are_nine_different_runs(method):
    rates = LEARNING_RATES if METHODS[method].search else MORE_LEARNING_RATES
    assert len(candidates(method)) == 9 and {each["lr"] for each in candidates(method)} == set(rates)
    assert (min(rates), max(rates)) == (1e-3, 1e-2)
    for task in TUNING_TASKS:
        runs = first_round(task, method)
        assert len({same_run_key(run) for run in runs}) == 9
        assert not unused_fields(vars(runs[0])) & set().union(*METHODS[method].search)
        assert {run.seed for run in runs} == {TUNING_SEEDS[0]}


def test_both_rounds_have_all_steps_and_a_seed_each():
    first, (again,) = first_round("tag", "fups"), second_round("tag", "fups", [3])
    assert {run.t_max for run in first} == {again.t_max} == {100_000}
    assert again == dataclasses.replace(first[3], seed=TUNING_SEEDS[1]) and first[3].seed == TUNING_SEEDS[0]


def test_the_page_names_every_method_with_its_values_and_every_task():
    for name, method in ((name, METHODS[name]) for name in STUDIED):
        (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        for setting in {key for own in method.search for key in own}:
            assert f"`{setting}`" in row
        for value in {value for own in method.search for value in own.values()} or MORE_LEARNING_RATES:
            assert re.search(rf"\b{value:g}\b", row), (name, value)
    for name, settings in TASKS.items():
        (row,) = [line for line in PAGE.splitlines() if f"`{name}`" in line and line.endswith("|")]
        assert f"{settings.get('t_max', 128_000):,}" in row


def test_the_best_of_each_task_and_the_best_of_all_go_on():
    assert tuning.best_overall({"a": A, "b": B}) == [8, 6]
    assert tuning.survivors({"a": A, "b": B}) == {"a": [6, 7, 8], "b": [0, 6, 8]}


def test_a_run_that_failed_is_the_worst():
    failed = np.where(np.arange(9) == 8, -np.inf, A)
    assert tuning.survivors({"a": failed}) == {"a": [6, 7]}


def test_the_choice_is_the_best_of_a_task_and_the_best_score_of_all():
    nan = np.full(9, np.nan)
    a, b = nan.copy(), nan.copy()
    a[[6, 7, 8]], b[[0, 6, 8]] = [4.0, 9.0, 5.0], [9.0, 8.0, 1.0]
    choice = tuning.choose({"a": A, "b": B}, {"a": a, "b": b}, {"a": (0.0, 10.0), "b": (0.0, 10.0)})
    assert choice == ({"a": 7, "b": 0}, 6)


def test_finished_runs_go_to_a_file_and_come_back_in_another_checkout(tmp_path, home):
    config, file = first_round("rolenav8", "fups")[0], tmp_path / "summaries" / "rolenav8_runs.jsonl"
    store.collect("tuning", file)
    assert not file.exists() and np.isnan(store.final_return(config, "tuning"))
    finished(config, 2.5, file)
    store.restore("tuning", file)
    assert store.final_return(config, "tuning") == 2.5
    written = file.read_text()
    store.collect("tuning", file)
    assert json.loads(file.read_text()).keys() == json.loads(written).keys() | {"training"}
    store.restore("elsewhere", file)
    assert store.final_return(config, "elsewhere") == 2.5


def finished(config, value: float, file: Path) -> None:
    """Add the summary of a run to a file."""
    line = {**vars(config), "run": run_folder(config, "any").name, "variant": "-", "test_return_mean": value}
    line["evaluations"] = {"t_env": [config.t_max], "test_return_mean": [value]}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")


def test_a_run_that_failed_counts_as_the_worst(home):
    config = first_round("rolenav8", "fups")[0]
    folder = run_folder(config, "tuning")
    folder.mkdir(parents=True)
    (folder / "FAILED").write_text("diverged")
    assert store.final_return(config, "tuning") == -np.inf


def test_choices_are_written_once_a_method_is_complete(tmp_path, monkeypatch, home):
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "tuning")
    for task in TUNING_TASKS:
        for k, config in enumerate(first_round(task, "fups")):
            finished(config, float(k), tuning.summaries(task))
        store.restore(tuning.group(task), tuning.summaries(task))
    assert tuning.write_choices(["fups", "nops"]) == []
    for task in TUNING_TASKS:
        for config in second_round(task, "fups", [7, 8]):
            finished(config, 100.0 + config.lr, tuning.summaries(task))
        store.restore(tuning.group(task), tuning.summaries(task))
    assert tuning.write_choices(["fups", "nops"]) == ["fups"]
    table = pd.read_csv(tuning.FOLDER / "candidates.csv")
    assert len(table) == 27 and set(table["method"]) == {"fups"}
    monkeypatch.setattr(report, "TUNING", tuning.FOLDER)
    assert report.choices("rolenav3") == [("fups", report.ONE, 8)]
    assert report.choices("tag") == [("fups", report.ONE, 8), ("fups", report.OF_TASK, 8)]
    best = table[table["one"]]
    assert len(best) == 3 and set(best["lr"]) == {0.01} and best["of_task"].all()
    assert best["mean"].tolist() == pytest.approx([54.005] * 3) and best["first"].tolist() == [8.0] * 3


def test_the_report_has_the_one_setting_and_that_of_the_task_on_fresh_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TUNING", tmp_path)
    with pytest.raises(RunError, match=r"python -m study tune"):
        report.report_runs("rolenav8")
    rows = [
        {"method": "k24", "task": task, "one": k == 2, "of_task": k == (5 if task == "rolenav8" else 2)}
        for task in TUNING_TASKS
        for k in range(9)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "candidates.csv", index=False)
    assert report.choices("rolenav8") == [("k24", report.ONE, 2), ("k24", report.OF_TASK, 5)]
    assert report.choices("rolenav3") == [("k24", report.ONE, 2)]
    runs = report.report_runs("rolenav8")
    assert len(runs) == 20 and {run.seed for run in runs} == set(range(10)) and not {100, 101} & {r.seed for r in runs}
    assert {(run.lr, run.alpha_lr_factor) for run in runs} == {(1e-3, 20.0), (3e-3, 20.0)}
    assert {run.t_max for run in runs} == {128_000}


def test_methods_that_are_one_with_other_defaults_share_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TUNING", tmp_path)
    fast = {"own_lr_factor": 20.0}
    best = {"kaleidoscope": {"threshold_scale": 2.0, **fast}, "kaleidoscope-half": fast}
    rows = [
        {"method": method, "task": task, "one": candidate == {"lr": 3e-3, **own}, "of_task": candidate["lr"] == 1e-2}
        for method, own in best.items()
        for task in TUNING_TASKS
        for candidate in candidates(method)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "candidates.csv", index=False)
    runs = report.report_runs("rolenav3")
    assert len(runs) == 10 and {run.method for run in runs} == {"kaleidoscope"}
    for run in runs:
        assert (run.lr, run.threshold_scale, run.own_lr_factor) == (3e-3, 2.0, 20.0)
    slow = report.report_run("rolenav3", "kaleidoscope-half", 0, 0)
    assert (slow.lr, slow.threshold_scale, slow.own_lr_factor) == (1e-3, 2.0, 1.0)
    under_its_name = study_run("rolenav3", "kaleidoscope-half", 0, 0)
    assert {**vars(slow), "method": ""} == {**vars(under_its_name), "method": ""}


def test_only_leading_methods_run_where_runs_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "TUNING", tmp_path)
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    rows = [{"method": method, "task": "tag", "one": k == 2, "of_task": k == 2} for method in STUDIED for k in range(9)]
    pd.DataFrame(rows).to_csv(tmp_path / "candidates.csv", index=False)
    with pytest.raises(RunError, match=r"python -m study results"):
        report.choices("smax")
    scores = {method: 0.01 * k for k, method in enumerate(STUDIED)}
    table = [
        {"variant": v, "aggregate": a, "value": s if a == "IQM" else -s}
        for v, s in scores.items()
        for a in ("IQM", "mean")
    ]
    (tmp_path / "study").mkdir()
    pd.DataFrame(table).to_csv(tmp_path / "study" / "aggregates.csv", index=False)
    methods = [method for method, reading, _ in report.choices("smax") if reading == report.ONE]
    assert set(methods) == {"k24", "fups", "fups-id", "nops", *STUDIED[-3:]} and len(report.choices("smax")) == 7
    assert len(report.choices("lbf")) == len(STUDIED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["report", "--tasks", "rolnav3"], "unknown task 'rolnav3'; did you mean 'rolenav3'?"),
        (["tune", "--methods", "gain24"], "unknown method 'gain24'; did you mean 'gains24'?"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_right_one(given, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_grid_of_tuned_settings_is_what_the_tuning_chose():
    one = {method: k for method, reading, k in report.choices("rolenav3") if reading == report.ONE}
    chosen = [study_run("rolenav3", method, k, 0) for method, k in one.items() if method not in report.MADE_AS]
    grid = load_grid(Path(__file__).parents[1] / "notebooks" / "grids" / "tuned.yaml")
    assert [config for config in grid.configs if config.seed == 0] == chosen
