"""Watching runs: what is shown is what the folders hold, and it ends whichever way the runs do."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import psutil
import pytest
from conftest import TINY
from matplotlib.figure import Figure
from processes import gone

from k24lab.errors import ConfigError, RunError
from k24lab.lab.config import build_config
from k24lab.lab.runs import FAILED, RunFolder, is_locked, run_folder
from k24lab.rendering import live_training
from k24lab.rendering.live_training import train_live, watch

RUN = [sys.executable, "-c"]


@pytest.fixture
def make_run(tiny_config):
    """A run folder, with these test returns at 0, 400, 800, ... env steps."""

    def make(*returns, seed=0, group="group", **changes):
        config = tiny_config(seed=seed, **changes)
        run = RunFolder(run_folder(config, group), config)
        for k, value in enumerate(returns):
            log(run, 400 * k, value)
        return run

    return make


def log(run, t_env, value, name="test_return_mean"):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"t_env": t_env, name: value}) + "\n")


def curves_of(figure, panel=0):
    """Points of the lines that are no dots at the end."""
    return [line.get_xydata().tolist() for line in figure.axes[panel].lines if line.get_marker() == "None"]


def clock_with(sleep, monotonic=time.monotonic):
    """In place of the module `time`."""
    return SimpleNamespace(sleep=sleep, monotonic=monotonic, strftime=time.strftime)


@pytest.fixture
def script(monkeypatch):
    """What happens while `watch` waits: one step each time; waits without a step fail."""

    def install(*steps):
        left, waits = list(steps), []

        def sleep(seconds):
            waits.append(seconds)
            left.pop(0)()

        monkeypatch.setattr(live_training, "time", clock_with(sleep))
        return waits

    return install


def interrupt():
    raise KeyboardInterrupt


def test_finished_group_is_shown_once_as_its_files_have_it(make_run):
    make_run(1.0, 2.0, 4.0).finish({})
    make_run(0.5, 0.75, method="fups").finish({})
    seen = watch("group")
    assert (seen.ended, seen.n_updates) == ("all have ended", 1)
    assert curves_of(seen.figure) == [[[0, 1], [400, 2], [800, 4]], [[0, 0.5], [400, 0.75]]]
    ax = seen.figure.axes[0]
    assert ax.get_xlim() == (0, 1600) and ax.get_ylabel() == "test return"
    assert ax.get_legend_handles_labels()[1] == ["K-2:4", "shared"]
    assert seen.curves["value"].tolist() == [0.5, 0.75, 1, 2, 4]
    assert plt.get_fignums() == []


def test_run_that_grows_is_drawn_when_there_is_something_new_until_it_is_done(make_run, script, capsys):
    run = make_run(1.0)
    attempt = run.attempt()
    attempt.__enter__()
    waits = script(
        lambda: log(run, 400, 2.0),
        lambda: None,
        lambda: log(run, 800, 3.0),
        lambda: (run.finish({}), attempt.__exit__(None, None, None)),
    )
    seen = watch("group", seconds=2.5)
    assert waits == [2.5] * 4
    assert (seen.n_updates, seen.ended, seen.statuses[0].state) == (4, "all have ended", "finished")
    assert curves_of(seen.figure) == [[[0, 1], [400, 2], [800, 3]]]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "1 running of 1 runs" in lines[0] and "rolenav k24 seed 0 running 0% 1.00" in lines[1]
    assert "running 25% 2.00" in lines[3] and "running 50% 3.00" in lines[5]
    assert "1 finished of 1 runs · all have ended" in lines[6] and "100%" in lines[7]


def test_failing_run_is_shown_with_its_error(make_run, script, capsys):
    run = make_run(1.0)
    script(lambda: (run.path / FAILED).write_text("ValueError: boom\n"))
    seen = watch("group")
    assert seen.ended == "all have ended" and seen.statuses[0].error == "ValueError: boom"
    assert "failed 0% 1.00 ValueError: boom" in capsys.readouterr().out


def test_time_is_over(make_run, monkeypatch):
    run = make_run(1.0, 2.0)
    assert watch("group", timeout=0.0).ended == "time is over"
    clock, waits = [100.0], []

    def sleep(seconds):
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(live_training, "time", clock_with(sleep, lambda: clock[0]))
    seen = watch(run.path, seconds=3.0, timeout=7.0)
    assert waits == [3.0, 3.0, 1.0]
    assert (seen.ended, seen.n_updates, seen.statuses[0].state) == ("time is over", 2, "stopped")


def test_interrupt_leaves_the_last_figure_and_no_error(make_run, script):
    run = make_run(1.0)
    script(lambda: log(run, 400, 2.0), interrupt)
    seen = watch("group")
    assert seen.ended == "interrupted" and curves_of(seen.figure) == [[[0, 1], [400, 2]]]


def test_run_that_joins_its_group_is_shown(make_run, script):
    make_run(1.0).finish({})
    run = make_run(2.0, seed=1)
    script(lambda: (run.finish({}), make_run(3.0, seed=2).finish({})))
    assert len(watch("group").statuses) == 3


def test_a_panel_for_each_task(make_run):
    make_run(1.0).finish({})
    make_run(2.0, task="rolenav:n_agents=4").finish({})
    figure = watch("group").figure
    assert [ax.get_title() for ax in figure.axes] == ["rolenav", "rolenav:n_agents=4"]
    assert [curves_of(figure, k) for k in (0, 1)] == [[[[0, 1]]], [[[0, 2]]]]


def test_other_metric_is_waited_for_and_a_misspelt_one_refused(make_run, script):
    run = make_run(1.0)
    script(lambda: log(run, 400, 0.3, "mask_flip_rate"), lambda: run.finish({}))
    seen = watch("group", "mask_flip_rate")
    assert curves_of(seen.figure) == [[[400, 0.3]]] and seen.figure.axes[0].get_ylabel() == "flip rate (share)"
    waiting = make_run(1.0, group="other")
    script(lambda: log(waiting, 400, 0.1, "loss_td"))
    with pytest.raises(RunError, match=r"unknown metric 'los_td'; did you mean 'loss_td'\?"):
        watch("other", "los_td")
    make_run(1.0, group="third").finish({})
    with pytest.raises(RunError, match=r"unknown metric 'dead_units'.*allowed: t_env, test_return_mean"):
        watch("third", "dead_units")


def test_runs_are_named_by_group_folder_or_id(make_run):
    run = make_run(1.0)
    make_run(1.0, seed=1)
    for source, n in (("group", 2), (run.path.parent, 2), (run.path, 1), (run.path.name, 1)):
        assert len(watch(source, timeout=0.0).statuses) == n
    with pytest.raises(RunError, match=r"no runs in .*nothing: unknown group 'nothing'.*group"):
        watch("nothing")


def test_of_many_runs_those_at_work_and_those_that_failed_have_a_line(make_run, capsys):
    for seed in range(13):
        make_run(1.0, seed=seed).finish({})
    (make_run(1.0, seed=13).path / FAILED).write_text("ValueError: boom")
    watch("group")
    out = capsys.readouterr().out
    assert "1 failed, 13 finished of 14 runs" in out and len(out.splitlines()) == 2 and "boom" in out


def test_run_that_cannot_be_read_does_not_hide_the_others(make_run, capsys):
    make_run(1.0).finish({})
    damaged = make_run(seed=1).path / "config.json"
    damaged.write_text("{")
    assert len(watch("group").statuses) == 1
    assert f"left out: {damaged} cannot be used" in capsys.readouterr().out


def test_notebook_has_a_picture_that_is_replaced(make_run, script, monkeypatch, capsys):
    run, shown = make_run(1.0), []
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr("IPython.display.display", lambda image: shown.append(image.data))
    monkeypatch.setattr("IPython.display.clear_output", lambda wait: shown.append(wait))
    script(lambda: log(run, 400, 2.0), lambda: run.finish({}))
    watch("group")
    assert shown[::2] == [True] * 3 and all(picture.startswith(b"\x89PNG") for picture in shown[1::2])
    assert len(set(shown[1::2])) == 2 and "1 finished of 1 runs · all have ended" in capsys.readouterr().out
    assert plt.get_fignums() == []


# Training beside the kernel.


def test_run_is_trained_in_a_process_of_its_own_and_watched(tiny_config):
    seen = train_live(tiny_config(), "mine", seconds=0.2)
    assert seen.ended == "all have ended" and seen.n_updates >= 3
    (status,) = seen.statuses
    assert status.state == "finished" and status.path == run_folder(tiny_config(), "mine")
    assert curves_of(seen.figure)[0][-1][0] == 1600
    log_file = (status.path / "log.txt").read_bytes()
    assert train_live(tiny_config(), "mine").n_updates == 1  # only shown
    assert (status.path / "log.txt").read_bytes() == log_file


@pytest.fixture
def as_run(monkeypatch):
    """Let a piece of Python stand for the training of a run."""
    return lambda code: monkeypatch.setattr(live_training, "command_of", lambda path, _: [*RUN, code.format(path=path)])


def test_run_that_dies_is_an_error_with_its_last_words(tiny_config, as_run):
    as_run("print('out of memory'); raise SystemExit(3)")
    with pytest.raises(RunError, match=r"mine/rolenav-k24-s0-\w+: ended with exit code 3: out of memory"):
        train_live(tiny_config(), "mine", seconds=0.05)


def test_run_that_fails_is_an_error_with_its_reason(tiny_config, as_run):
    as_run("open('{path}/FAILED', 'w').write('ValueError: boom')")
    with pytest.raises(RunError, match=r"ValueError: boom \(details in log\.txt\)"):
        train_live(tiny_config(), "mine", seconds=0.05)


def test_interrupt_stops_what_train_live_started_before_it_shows_the_end(tiny_config, as_run, monkeypatch):
    as_run("import time; time.sleep(100)")
    alive = []
    children = psutil.Process().children
    monkeypatch.setattr(live_training, "_show", lambda *_: alive.append(len(children())) or Figure())
    monkeypatch.setattr(live_training, "time", clock_with(lambda _: interrupt()))
    before = len(children())
    assert train_live(tiny_config(), "mine").ended == "interrupted"
    assert alive == [before + 1, before]


def test_misspelt_metric_stops_the_run_too(tiny_config, as_run):
    as_run(
        "import time; open('{path}/metrics.jsonl', 'w').write('{{\"t_env\": 1, \"loss_td\": 1}}\\n'); time.sleep(100)"
    )
    with pytest.raises(RunError, match="unknown metric 'los_td'"):
        train_live(tiny_config(), "mine", "los_td", seconds=0.05)


def test_nothing_is_started_for_a_run_that_another_process_trains(tiny_config, as_run, make_run, script):
    as_run("raise SystemExit(3)")
    run = make_run(1.0)
    with run.attempt():
        script(interrupt)
        assert train_live(tiny_config(), "group").ended == "interrupted"
        assert is_locked(run.path)


def test_wrong_task_is_refused_before_a_folder_is_made(home):
    with pytest.raises(ConfigError, match="unknown task"):
        train_live(build_config({"task": "rolenaf"}))
    assert not (home / "runs").exists()


def test_run_ends_with_the_kernel_that_started_it(home):
    code = f"""
from k24lab.lab.config import build_config
from k24lab.rendering.live_training import train_live
train_live(build_config({TINY | {"t_max": 10**7}!r}), "mine")
"""
    kernel = subprocess.Popen(
        [*RUN, code], stdout=subprocess.PIPE, text=True, env=os.environ | {"K24LAB_HOME": str(home)}
    )
    with kernel:
        deadline = time.monotonic() + 60
        while not list((home / "runs" / "mine").glob("*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        pids = [child.pid for child in psutil.Process(kernel.pid).children()]
        kernel.send_signal(signal.SIGKILL)
    assert pids and gone(pids)
    (status,) = watch("mine", timeout=0.0).statuses
    assert status.state in ("waiting", "stopped")  # and not running, nor failed
