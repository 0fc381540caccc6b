"""Reading run folders: what is found, what is left out, and what is said about it."""

import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest

from k24lab.analysis import load as results
from k24lab.analysis.mask_tables import run_pairs, snapshot_table
from k24lab.errors import RunError, RunWarning
from k24lab.lab import paths
from k24lab.lab.find_runs import find_run, find_runs, variants

METRICS = [{"t_env": 0, "test_return_mean": -1.0}, {"t_env": 100, "loss_td": 0.5}]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def make_run(home):
    """Write a run folder; returns its path."""

    def make(run_id, *, group="demo", done=True, metrics=METRICS, summary=None, **config):
        folder = home / "runs" / group / run_id
        folder.mkdir(parents=True)
        config = {"task": "rolenav", "method": "k24", "seed": 0, "hidden_dim": 64} | config
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        (folder / "summary.json").write_text(json.dumps(summary or {"test_return_mean": 2.5}))
        if done:
            (folder / "DONE").touch()
        return folder

    return make


def add_masks(folder, index_by_time):
    """Snapshots of one layer from pattern indices [M, out, G], each certain of its pattern."""
    (folder / "patterns").mkdir()
    for t_env, index in index_by_time.items():
        index = np.array(index, dtype=np.uint8)
        arrays = {"fc1/pattern_index": index, "fc1/pattern_probs": np.eye(6, dtype=np.float16)[index]}
        np.savez(folder / "patterns" / f"{t_env:010d}.npz", **arrays)


def add_policies(folder, q_values):
    q_values = np.array(q_values, dtype=np.float32)
    np.savez(folder / "policy.npz", q_values=q_values, avail_actions=np.ones(q_values.shape[1:], dtype=bool))


def test_paths_follow_the_home_variable_else_the_checkout(home, monkeypatch):
    assert (paths.runs_dir(), paths.figures_dir()) == (home / "runs", home / "figures")
    monkeypatch.setenv(paths.HOME_VARIABLE, "")
    monkeypatch.chdir(home)
    assert (paths.project_root() / "pyproject.toml").is_file()


def test_drawings_never_go_to_the_published_figures_unless_they_are_told_to(home, monkeypatch, tmp_path):
    monkeypatch.setenv("K24LAB_HOME", str(paths.CHECKOUT))
    assert paths.figures_dir() == paths.CHECKOUT / "output"
    monkeypatch.delenv("K24LAB_HOME")
    assert paths.figures_dir() == paths.CHECKOUT / "output"
    monkeypatch.setenv("K24LAB_FIGURES", str(tmp_path / "mine"))
    assert paths.figures_dir() == tmp_path / "mine"


def test_paths_of_a_package_outside_a_checkout_are_the_current_folder(home, monkeypatch):
    monkeypatch.delenv(paths.HOME_VARIABLE)
    monkeypatch.setattr(paths, "CHECKOUT", home / "site-packages")
    monkeypatch.chdir(home)
    assert paths.project_root() == home


def test_runs_are_found_by_group_and_by_folder_in_order_of_their_names(make_run, home):
    make_run("b", seed=1)
    make_run("a")
    make_run("c", group="other")
    assert [run.id for run in find_runs("demo")] == ["a", "b"]
    assert [run.id for run in find_runs(home / "runs" / "other")] == ["c"]


def test_filters_take_a_value_a_list_or_none_for_all(make_run):
    for k, (method, seed) in enumerate([("k24", 0), ("k24", 1), ("fups", 0), ("nops", 0)]):
        make_run(f"r{k}", method=method, seed=seed)
    assert [r.id for r in find_runs("demo", method="k24", seed=1)] == ["r1"]
    assert [r.id for r in find_runs("demo", method=["fups", "nops"], seed=None)] == ["r2", "r3"]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"method": "k42"}, r"no run in .* has method in \['k42'\] \(there are: k24\)"),
        ({"metod": "k24"}, "unknown config field 'metod'; did you mean 'method'"),
    ],
)
def test_filters_that_match_nothing_say_what_there_is(make_run, filters, message):
    make_run("a")
    with pytest.raises(RunError, match=message):
        find_runs("demo", **filters)


def test_a_group_without_runs_names_the_groups_or_the_command(make_run):
    with pytest.raises(RunError, match="nor in any other group: `k24lab train --name demo`"):
        find_runs("demo")
    make_run("a", group="rolenav3")
    with pytest.raises(RunError, match="unknown group 'rolnav3'; did you mean 'rolenav3'"):
        find_runs("rolnav3")


def test_unfinished_runs_are_left_out_and_counted(make_run):
    make_run("a")
    make_run("b", seed=1, done=False)
    with pytest.warns(RunWarning, match="1 of 2 runs .* unfinished"):
        assert [run.id for run in find_runs("demo")] == ["a"]
    assert [run.finished for run in find_runs("demo", finished_only=False)] == [True, False]


def test_only_unfinished_runs_is_an_error(make_run):
    make_run("a", done=False)
    with pytest.raises(RunError, match="none of the 1 runs"):
        find_runs("demo")


def test_of_equal_configs_the_newest_finished_run_stays(make_run):
    old, new = make_run("a_old"), make_run("b_new", device="cuda")
    make_run("c_unfinished", done=False)
    os.utime(old / "DONE", (1000, 1000))
    os.utime(new / "DONE", (2000, 2000))
    with pytest.warns(RunWarning, match="2 of 3 runs .* repeat a config"):
        assert [run.id for run in find_runs("demo")] == ["b_new"]


def test_metrics_are_tidy_and_carry_the_config(make_run):
    make_run("a", epsilon=9, metrics=[*METRICS, {"t_env": 200, "epsilon": 0.5, "loss_td": None}])
    make_run("b", method="fups")
    frame = results.load_metrics(find_runs("demo"))
    pd.testing.assert_frame_equal(results.load_metrics("demo"), frame)
    assert frame["run"].tolist() == ["a"] * 3 + ["b"] * 2
    assert frame["t_env"].tolist() == [0, 100, 200, 0, 100]
    assert frame["variant"].tolist() == ["k24"] * 3 + ["fups"] * 2
    assert frame["loss_td"].isna().tolist() == [True, False, True, True, False]
    assert frame.loc[frame["run"] == "a", "config_epsilon"].tolist() == [9, 9, 9]
    assert frame["epsilon"].dropna().tolist() == [0.5]


def test_a_torn_last_line_is_skipped_in_silence(make_run):
    folder = make_run("a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"t_env": 200, "loss_')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = results.load_metrics(find_runs("demo"))
    assert frame["t_env"].tolist() == [0, 100]


@pytest.mark.parametrize("torn", ['{"t_env": 50, "lo', "17", "\x00\x00"])
def test_a_torn_line_in_the_middle_is_skipped_with_its_place(make_run, torn):
    folder = make_run("a")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], torn, lines[1]]) + "\n")
    with pytest.warns(RunWarning, match=r"metrics\.jsonl:2 is not a whole JSON object"):
        frame = results.load_metrics(find_runs("demo"))
    assert frame["t_env"].tolist() == [0, 100]


def test_runs_without_any_metrics_are_named(make_run):
    make_run("a", metrics=[])
    with pytest.raises(RunError, match=r"^no metrics in 1 runs \(a\)$"):
        results.load_metrics("demo")


def test_metrics_without_time_or_without_file_are_errors(make_run):
    folder = make_run("a", metrics=[{"loss_td": 1.0}])
    with pytest.raises(RunError, match=r"metrics\.jsonl:1 has no t_env"):
        results.load_metrics(find_runs("demo"))
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="does not exist"):
        results.load_metrics(find_runs("demo"))


def test_damaged_config_and_summary_are_errors_with_the_file(make_run):
    folder = make_run("a")
    runs = find_runs("demo")
    (folder / "summary.json").write_text("[1]")
    with pytest.raises(RunError, match=r"summary\.json holds list"):
        results.load_summaries(runs)
    (folder / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json is not valid JSON"):
        find_runs("demo")


def test_summaries_have_one_row_per_run(make_run):
    make_run("a", summary={"test_return_mean": 2.0, "seed": 7})
    make_run("b", seed=1)
    frame = results.load_summaries(find_runs("demo"))
    assert frame["test_return_mean"].tolist() == [2.0, 2.5]
    assert frame["config_seed"].tolist() == [0, 1]


def test_variants_name_the_fields_that_vary_within_task_and_method_only(make_run):
    make_run("a", hidden_dim=16)
    make_run("b", hidden_dim=64, seed=1)
    make_run("c", method="fups", hidden_dim=64)
    make_run("d", method="fups", hidden_dim=64, seed=1, device="cuda", log_interval=5)
    runs = find_runs("demo")
    assert variants(runs) == ["k24 hidden_dim=16", "k24", "fups", "fups"]  # 64 is the default


def test_what_most_runs_of_a_task_share_is_no_deviation(make_run):
    """A task's own mixer is not the learner's default; what a method has of its own, other methods do not decide."""
    make_run("a", learner="nq", mixer="vdn", alpha_lr_factor=20.0, noise="annealed")
    make_run("b", learner="nq", mixer="qmix", alpha_lr_factor=20.0, noise="annealed")  # the default of this learner
    make_run("c", learner="nq", mixer="vdn", alpha_lr_factor=20.0, noise="none")
    make_run("d", method="k24-alpha", learner="nq", mixer="vdn", alpha_lr_factor=20.0)
    make_run("e", method="k24-alpha", learner="nq", mixer="vdn", alpha_lr_factor=5.0)
    make_run("f", task="other", learner="nq", mixer="vdn")
    make_run("g", task="other", learner="nq", mixer="qmix")  # no majority: the default
    names = variants(find_runs("demo"))
    assert names[:3] == ["k24", "k24 mixer=qmix", "k24 noise=none"]
    assert names[3:] == ["k24-alpha alpha_lr_factor=20.0", "k24-alpha", "k24 mixer=vdn", "k24"]


def test_methods_that_do_not_use_a_setting_or_have_it_of_their_own_make_no_majority(make_run):
    """Random masks have no rate of alpha, and scores without weights are k24-alpha's own."""
    for seed in range(3):
        make_run(f"a{seed}", method="random24", seed=seed, alpha_lr_factor=10.0)
        make_run(f"b{seed}", method="k24-alpha", seed=seed, score_weight_power=0.0, alpha_lr_factor=10.0)
    make_run("c", alpha_lr_factor=20.0, score_weight_power=1.0)
    make_run("d", alpha_lr_factor=10.0, score_weight_power=0.0)
    names = variants(find_runs("demo"))
    assert names[-2:] == ["k24", "k24 alpha_lr_factor=10.0 score_weight_power=0.0"]


def test_patterns_come_in_time_order_with_their_types(make_run):
    add_masks(make_run("a"), {100_000: [[[1]], [[2]]], 0: [[[0]], [[5]]]})
    (run,) = find_runs("demo")
    snapshots = results.load_patterns(run)
    assert list(snapshots) == [0, 100_000]
    assert snapshots[0]["fc1"].index.tolist() == [[[0]], [[5]]]
    assert snapshots[0]["fc1"].probs.dtype == np.float32
    assert results.last_patterns(run)["fc1"].index.tolist() == [[[1]], [[2]]] and results.has_patterns(run)


def test_runs_without_masks_or_policy_say_so(make_run):
    make_run("a", method="fups")
    (run,) = find_runs("demo")
    assert not results.has_patterns(run)
    with pytest.raises(RunError, match="method 'fups' may have no masks"):
        results.load_patterns(run)
    with pytest.raises(RunError, match=r"policy\.npz does not exist"):
        results.load_policies(run)


def test_snapshot_table_by_hand(make_run):
    # Agents: 1100 and 0011 differ everywhere; then the first takes 1010, which shares one weight with 0011.
    add_masks(make_run("a"), {0: [[[0]], [[5]]], 10: [[[1]], [[5]]]})
    table = snapshot_table(results.load_patterns(find_runs("demo")[0]))
    expected = {
        "t_env": [0, 0, 10, 10],
        "layer": ["fc1", "all", "fc1", "all"],
        "hamming": [1.0, 1.0, 0.5, 0.5],
        "similarity": [0.0] * 4,
        "entropy": [0.0] * 4,
        "flip_rate": [np.nan, np.nan, 0.5, 0.5],
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame(expected), check_dtype=False)


def test_run_pairs_by_hand(make_run):
    masked, shared = make_run("a"), make_run("b", method="fups")
    add_masks(masked, {0: [[[0]], [[5]]]})
    add_policies(masked, [[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    add_policies(shared, [[[1.0, 0.0], [1.0, 0.0]]] * 2)
    pairs = run_pairs(find_runs("demo"))
    assert pairs[["variant", "agent_a", "agent_b"]].values.tolist() == [["k24", 0, 1], ["fups", 0, 1]]
    assert pairs["greedy"].tolist() == [0.5, 0.0]
    assert pairs["hamming"].tolist()[0] == 1.0
    assert np.isnan(pairs["hamming"].tolist()[1])


def test_masks_are_named_after_types_or_numbered_by_agent(make_run):
    names = ["marine", "zealot"]
    for run_id, mask_per in (("a", "type"), ("b", "agent")):
        folder = make_run(run_id, mask_per=mask_per, summary={"unit_type_names": names})
        np.savez(folder / "policy.npz", q_values=np.zeros((3, 4, 2)), avail_actions=np.ones((4, 2), dtype=bool))
    by_type, by_agent = find_runs("demo")
    assert results.mask_names(by_type) == names
    assert results.mask_names(by_agent) == ["0", "1", "2"]


def test_the_run_that_stands_for_a_group_has_the_methods_own_settings_and_the_least_seed(make_run):
    make_run("a", hidden_dim=32, seed=0)
    make_run("b", seed=1)
    make_run("c", seed=0)
    make_run("d", method="nops", seed=0)
    make_run("e", task="vmas/navigation", seed=0)
    assert find_run("demo", method="k24").path.name == "c"
    assert find_run("demo", method="k24", seed=1).path.name == "b"
    assert find_run("demo", method="k24", hidden_dim=32).path.name == "a"
    assert find_run("demo", task="vmas/navigation").path.name == "e"
    with pytest.raises(RunError, match="seed"):
        find_run("demo", seed=7)
