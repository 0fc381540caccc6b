"""Raw summaries and back: what a figure of returns needs is in them, and a file that cannot be used writes nothing."""

import json

import pandas as pd
import pytest

from k24lab.analysis import export, load as results
from k24lab.errors import ConfigError, RunError
from k24lab.lab import runs
from k24lab.lab.find_runs import find_runs
from k24lab.lab.importer import import_runs
from k24lab.lab.paths import runs_dir
from k24lab.lab.runs import RunFolder, run_folder

EVALUATIONS = [
    {"t_env": 0, "test_return_mean": -1.5},
    {"t_env": 100, "loss_td": 0.5, "dead_units": 0.25},
    {"t_env": 150, "loss_td": 0.5, "dead_units": None, "mask_flip_rate": 0.125},
    {"t_env": 200, "test_return_mean": 2.25},
]

DYNAMICS = ["dead_units", "mask_flip_rate", "no_such_metric"]


@pytest.fixture
def lines(tiny_config, tmp_path):
    """Two finished runs of the group `theirs` as a file of raw summaries."""
    for changes in ({"diversity_coef_max": None, "seed": 3}, {"method": "fups"}):
        config = tiny_config(**changes)
        folder = RunFolder(run_folder(config, "theirs"), config)
        text = "".join(json.dumps(row) + "\n" for row in EVALUATIONS)
        (folder.path / "metrics.jsonl").write_text(text)
        folder.finish(
            {"test_return_mean": 2.25, "lr": 0.5, "unit_type_names": ["a"]}
        )  # lr: a metric named as a setting
    found = find_runs("theirs")
    path = tmp_path / "theirs_runs.jsonl"
    path.write_text(export.run_lines(results.load_metrics(found), results.load_summaries(found), DYNAMICS))
    return path


def test_imported_runs_read_like_those_that_were_exported(lines):
    folders = import_runs([lines])
    assert {folder.parent for folder in folders} == {runs_dir() / f"{lines.parent.name}_runs"}
    ours, theirs = find_runs(f"{lines.parent.name}_runs"), find_runs("theirs")
    assert [(run.id, run.config) for run in ours] == [(run.id, run.config) for run in theirs]
    pd.testing.assert_frame_equal(results.load_summaries(ours), results.load_summaries(theirs))
    logged = results.load_metrics(theirs).drop(columns="loss_td")
    pd.testing.assert_frame_equal(results.load_metrics(ours)[list(logged)], logged)


def test_a_run_that_is_there_stays_as_it_is(lines):
    folders = import_runs([lines], "theirs")
    assert all("loss_td" in (folder / "metrics.jsonl").read_text() for folder in folders)
    assert import_runs([lines, lines], "ours") == import_runs([lines], "ours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "../../elsewhere"}, "name = '../../elsewhere'"),
        ({"gamma": "fast"}, "runs.jsonl:2 is no raw summary of a run: ConfigError: gamma = 'fast'"),
        ({"task": None}, "is no raw summary of a run: ConfigError: task = None"),
        ({"evaluations": {"t_env": [0, 1], "test_return_mean": [1.0]}}, "is no raw summary of a run: ValueError"),
        ({"evaluations": {"test_return_mean": [1.0]}}, "is no raw summary of a run: KeyError: 't_env'"),
        ({"evaluations": 3}, "is no raw summary of a run: AttributeError"),
        ({"training": {"t_env": [0], "dead_units": 0.5}}, "is no raw summary of a run: TypeError"),
    ],
)
def test_a_line_that_cannot_be_used_writes_nothing(lines, change, message):
    first, second = map(json.loads, lines.read_text().splitlines())
    lines.write_text(json.dumps(first) + "\n" + json.dumps(second | change) + "\n")
    with pytest.raises((RunError, ConfigError), match=message.replace(".", r"\.")):
        import_runs([lines], "ours")
    assert not (runs_dir() / "ours").exists()


def test_files_that_are_no_raw_summaries(lines, tmp_path):
    with pytest.raises(RunError, match="at least one file"):
        import_runs([])
    with pytest.raises(RunError, match="does not exist"):
        import_runs([tmp_path / "none_runs.jsonl"])
    for text, message in (("[1]\n", "no raw summary"), ("{\n", ":1 is no raw summary")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(RunError, match=message):
            import_runs([lines, tmp_path / "bad.jsonl"], "ours")
    assert not (runs_dir() / "ours").exists()


def test_a_run_in_training_is_not_taken_over(lines, tiny_config, monkeypatch):
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.1)
    config = tiny_config(method="fups")
    begun = RunFolder(run_folder(config, "ours"), config)
    (begun.path / "metrics.jsonl").write_text("what it has logged\n")
    with begun.attempt(), pytest.raises(RunError, match="another process trains this run"):
        import_runs([lines], "ours")
    (begun.path / runs.CHECKPOINT).touch()
    import_runs([lines], "ours")
    assert not begun.done and (begun.path / "metrics.jsonl").read_text() == "what it has logged\n"


def test_a_folder_with_another_run_is_not_mixed_with_an_imported_one(lines):
    first = json.loads(lines.read_text().splitlines()[0])
    lines.write_text(json.dumps(first | {"gamma": 0.5}) + "\n")
    with pytest.raises(RunError, match="other settings: import under another --name"):
        import_runs([lines], "theirs")
