"""Loggers and users' callbacks: they see what metrics.jsonl holds, change no number, and lose no run."""

import csv
import importlib.util
import json
import os
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from short_runs import interrupt, metrics, rows
from test_cli import k24lab  # noqa: F401

from k24lab.errors import ConfigError, RunError, RunWarning
from k24lab.lab.callbacks import Callback, CSVLogger
from k24lab.lab.config import build_config
from k24lab.lab.paths import CHECKOUT
from k24lab.lab.train import train

SHORT = TINY | {"task": "rolenav:episode_limit=10", "n_envs": 20}  # 200 env steps an iteration


@pytest.fixture
def tiny_config():
    """Make a tiny configuration with short episodes."""
    return lambda **changes: build_config(SHORT | {"t_max": 800} | changes)


class Recorder(Callback):
    """Keeps every call; what it gets it spoils, and it draws from every global generator."""

    def __init__(self):
        self.calls = []

    def _note(self, name, *given):
        self.calls.append((name, *(dict(x) if isinstance(x, dict) else x for x in given)))
        for spoilt in (x for x in given if isinstance(x, dict)):
            spoilt.clear()
        torch.rand(3), random.seed(0)
        np.random.rand(3)  # noqa: NPY002

    def on_start(self, folder, config, t_env):
        self._note("on_start", folder, config, t_env)

    def on_log(self, t_env, metrics):
        self._note("on_log", t_env, metrics)

    def on_test(self, t_env, metrics):
        self._note("on_test", t_env, metrics)

    def on_end(self, summary):
        self._note("on_end", summary)

    def close(self):
        self._note("close")


def test_a_callback_sees_every_line_of_the_metrics_and_changes_none(tiny_config, tmp_path):
    config, seen = tiny_config(), Recorder()
    path = train(config, folder=tmp_path / "run", progress=False, callbacks=[seen])
    alone = train(config, folder=tmp_path / "alone", progress=False)
    assert metrics(path) == metrics(alone)
    assert seen.calls[0] == ("on_start", path, config, 0)
    lines = [(t_env, values) for name, t_env, values in seen.calls[1:-2] if name == "on_log" or name == "on_test"]
    assert [{"t_env": t_env} | values for t_env, values in lines] == [
        {key: value for key, value in row.items() if key not in ("update", "episode")} for row in rows(path)
    ]
    tests = [t_env for name, t_env, values in seen.calls[1:-2] if name == "on_test" and "test_return_mean" in values]
    assert tests == [0, 400, 800]
    assert seen.calls[-2:] == [("on_end", json.loads((path / "summary.json").read_text())), ("close",)]
    train(config, folder=path, progress=False, callbacks=[seen])  # finished before
    assert seen.calls[-1] == ("close",) and len(seen.calls) == len(lines) + 3


@pytest.mark.parametrize("method", ["on_log", "on_test", "on_end", "close"])
def test_an_error_of_a_callback_is_named_once_and_the_run_goes_on(method, tiny_config, tmp_path):
    class Faulty(Recorder):
        pass

    def fail(self, *given):
        raise ValueError("no connection")

    setattr(Faulty, method, fail)
    faulty, other = Faulty(), Recorder()
    with pytest.warns(RunWarning, match=r"Faulty.*ValueError: no connection \(test_callbacks\.py, line \d+\)") as given:
        path = train(tiny_config(), folder=tmp_path / "run", progress=False, callbacks=[faulty, other])
    assert len(given) == 1 and (path / "DONE").exists()
    assert [call[0] for call in other.calls][-2:] == ["on_end", "close"]
    if method != "close":
        assert f"Faulty.{method}: " in str(given[0].message)
        assert faulty.calls[-1] == ("close",)  # and it is closed all the same
        assert method == "on_end" or "on_end" not in [call[0] for call in faulty.calls]


def test_a_callback_that_cannot_start_refuses_the_run_which_goes_on_without_it(tiny_config, tmp_path):
    class Refusing(Recorder):
        def on_start(self, folder, config, t_env):
            raise ValueError("no key")

    first, last = Recorder(), Recorder()
    with pytest.raises(RunError, match=r"Refusing could not start: ValueError: no key"):
        train(tiny_config(), folder=tmp_path / "run", progress=False, callbacks=[first, Refusing(), last])
    assert [call[0] for call in first.calls] == ["on_start", "close"] and last.calls == []
    assert (train(tiny_config(), folder=tmp_path / "run", progress=False) / "DONE").exists()


def read_csv(path):
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_file_of_a_resumed_run_holds_its_metrics_once(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(loggers="csv", t_max=1600)
    interrupt(monkeypatch, config, tmp_path / "run", after=5)  # a checkpoint was written after the fourth
    assert read_csv(tmp_path / "run")[-1]["t_env"] == "1000"
    path = train(config, folder=tmp_path / "run", progress=False)
    found = [{key: float(value) for key, value in line.items() if value} for line in read_csv(path)]
    assert found == [{key: v for key, v in row.items() if key not in ("update", "episode")} for row in rows(path)]


def test_a_run_without_a_checkpoint_starts_its_csv_file_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("t_env,old\n0,1\n")
    logger = CSVLogger()
    logger.on_start(tmp_path, build_config({}), 0)
    logger.on_log(5, {"new": 2.0})
    assert (tmp_path / "metrics.csv").read_text().split() == ["t_env,new", "5,2.0"]


def test_a_csv_file_that_gets_a_new_column_is_replaced_as_a_whole(tmp_path, monkeypatch):
    logger = CSVLogger()
    logger.on_start(tmp_path, build_config({}), 0)
    logger.on_log(1, {"loss": 2.0})
    before = (tmp_path / "metrics.csv").read_text()

    def fail(fd):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            logger.on_log(2, {"loss": 1.0, "new": 3.0})
    assert (tmp_path / "metrics.csv").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_loggers_are_no_part_of_a_runs_identity(tiny_config):
    config = tiny_config(loggers="csv, wandb", tensorboard=True)
    assert config.logger_names == ["csv", "wandb", "tensorboard"] and config.hash() == tiny_config().hash()
    assert tiny_config(loggers="tensorboard", tensorboard=True).logger_names == ["tensorboard"]
    with pytest.raises(ConfigError, match=r"unknown logger 'csw'; did you mean 'csv'\? \(allowed: csv, tensorboard, w"):
        tiny_config(loggers="csw")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_without_its_package_names_its_extra_and_makes_no_folder(name, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"the logger '{name}' needs its extra: pip install 'k24lab\[{name}\]'"):
        train(tiny_config(loggers=name), folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_loggers(k24lab, home):  # noqa: F811
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in (SHORT | {"t_max": 400}).items()]
    code, out, _ = k24lab("train", "--loggers", "csv", "--quiet", *flags)
    assert code == 0 and len(read_csv(Path(out.strip()))) == len(rows(Path(out.strip())))


class FakeWandb(SimpleNamespace):
    """Stands for the package: keeps what its runs are told."""

    def __init__(self):
        self.runs, self.__spec__ = [], importlib.util.spec_from_loader("wandb", None)

    def init(self, **given):
        log = []
        run = SimpleNamespace(given=given, logged=log, log=log.append, summary={}, define_metric=lambda *_, **__: None)
        run.finish = lambda exit_code: setattr(run, "exit_code", exit_code)
        self.runs.append(run)
        return run


def test_wandb_gets_metrics_settings_and_summary_and_goes_on_with_the_same_run(tiny_config, tmp_path, monkeypatch):
    fake, config = FakeWandb(), tiny_config(loggers="wandb", t_max=1600)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    interrupt(monkeypatch, config, tmp_path / "group" / "run", after=5)
    path = train(config, folder=tmp_path / "group" / "run", progress=False)
    first, second = fake.runs
    assert first.given == second.given and first.given["id"] == (path / "wandb_id").read_text()
    assert (first.given["group"], first.given["name"], first.given["config"]["t_max"]) == ("group", "run", 1600)
    logged = [line for line in first.logged if line["t_env"] <= 800] + second.logged
    assert logged == [{key: v for key, v in row.items() if key not in ("update", "episode")} for row in rows(path)]
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert second.summary == json.loads((path / "summary.json").read_text())


def test_the_real_wandb_offline(tiny_config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = train(tiny_config(loggers="wandb"), folder=tmp_path / "run", progress=False)
    assert metrics(path) == metrics(train(tiny_config(), folder=tmp_path / "alone", progress=False))
    (file,) = path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert file.stem.removeprefix("run-") == (path / "wandb_id").read_text()
    assert b"test_return_mean" in written and b"hetero_init_scale" in written and b"env_steps_per_s" in written


def test_the_documented_callback_for_mlflow(tiny_config, tmp_path, monkeypatch):
    page = (CHECKOUT / "docs" / "experiments.md").read_text()
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import mlflow" in code]
    told = []
    names = ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    fake = SimpleNamespace(
        **{name: lambda *a, _name=name, **k: told.append((_name, *a, *k.values())) for name in names}
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert snippet.count('build_config({"task": "rolenav"})') == 1
    exec(snippet.replace('build_config({"task": "rolenav"})', f"build_config({SHORT | {'t_max': 400}})"), {})
    assert [name for name, *_ in told][:3] == ["set_experiment", "start_run", "log_params"]
    assert told[-1] == ("end_run",) and sum(name == "log_metrics" for name, *_ in told) >= 3
    given = [rest for name, *rest in told if name == "log_metrics"]
    assert all(type(values) is dict and type(t_env) is int for values, t_env in given)
