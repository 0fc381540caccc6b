"""The same words are the same run: on the command line, in Python, in grid files and in notebooks."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from k24lab import cli
from k24lab.envs.registry import canonical_task, make_env
from k24lab.envs.tasks import canonical_text
from k24lab.errors import ConfigError, RunError
from k24lab.lab import notebooks, train as training
from k24lab.lab.config import Config, build_config, merge_settings, stored_config
from k24lab.lab.grid import load_grid
from k24lab.lab.paths import CHECKOUT
from k24lab.lab.runs import RunFolder, canonical, read_config, run_folder
from k24lab.lab.train import train
from k24lab.methods import METHODS

SETTINGS = [
    {},
    *({"method": method} for method in METHODS),
    *({"method": method, "learner": "nq"} for method in ("k24", "k24-literal", "fups-id", "kaleidoscope")),
    {"learner": "nq", "mixer": "vdn", "td_loss": "huber", "lr": 0.003, "batch_size": 32},
    {"diversity_coef_max": None, "seed": 3},
    {"method": "kaleidoscope", "diversity_coef_max": 2},
    {"logit_scale_final": None, "lr_final": None},
    {"logit_scale_final": 3, "lr": 1, "mask_rnn": False},
    {"method": "k24-literal", "mask_rnn": True, "reset_trigger": "off"},
    {"method": "fups", "agent_id": True, "hidden_dim": 32, "mixer": "none"},
    {"noise": "none", "gamma": 0.99, "kl_threshold": 1e-05, "t_max": 50_000},
    {"diversity_coef": -0.0, "score_ema_power": -0.0},
    {"task": " rolenav: n_types = 2, n_agents=3,", "mask_per": "type", "learner": "nq", "mixer": "qmix"},
    {"task": "rolenav:n_agents=3", "seed": 2},
    {"task": "mpe2/simple_spread:N=3,local_ratio=1", "mixer": "qmix", "n_envs": 8, "updates_per_rollout": 8},
    {"task": "vmas/navigation:n_agents=3,collisions=False", "n_threads": 2},
    {"task": "mpe2/simple_tag:prey=random", "n_workers": 1, "buffer_size": 2000},
    {"target_update": "hard", "target_update_interval": 100, "td_lambda": 0.8, "epsilon_finish": 0},
]


def flags(settings, by="two words"):
    """Settings as arguments of the command line."""
    words = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}={value}"] if by == "=" else [f"--{name}", str(value)]
    return words


def by_command_line(settings, monkeypatch, capsys, by="two words"):
    monkeypatch.setattr(sys, "argv", ["k24lab", "train", "--quiet", *flags(settings, by)])
    cli.main()
    return Path(capsys.readouterr().out.strip())


def by_grid(settings, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"name": "default", "grids": [settings]}))
    grid = load_grid(tmp_path / "mine.yaml")
    (config,) = grid.configs
    return RunFolder(run_folder(config, grid.name), config).path


def by_notebook(settings, all_overrides):
    own = set() if all_overrides else notebooks.parameter_names("02_train")
    given = {key: value for key, value in settings.items() if key in own}
    return run_notebook(given | {"overrides": {k: v for k, v in settings.items() if k not in own} or None})


def run_notebook(given):
    """The cells of 02_train up to the training, with the cell that papermill puts in."""
    notebook = load_notebook_node(str(CHECKOUT / "notebooks" / "02_train.ipynb"))
    cells = [cell.source for cell in parameterize_notebook(notebook, given).cells if cell.cell_type == "code"]
    (last,) = [k for k, source in enumerate(cells) if "train(" in source]
    names = {}
    for source in cells[: last + 1]:
        exec(source, names)
    return names["folder"]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_all_four_ways_make_the_same_run(settings, tmp_path, monkeypatch, capsys):
    assert len(SETTINGS) >= 30
    monkeypatch.setattr(training, "_train", lambda *_: None)
    folders = [
        train(build_config(settings), progress=False),
        by_command_line(settings, monkeypatch, capsys),
        by_command_line(dict(reversed(settings.items())), monkeypatch, capsys, by="="),
        by_grid(settings, tmp_path),
        by_notebook(settings, all_overrides=False),
        by_notebook(settings, all_overrides=True),
    ]
    assert len(set(folders)) == 1 and len(list(folders[0].parent.iterdir())) == 1
    config = read_config(folders[0])
    assert folders[0].name.endswith(config.hash())
    assert config == canonical(build_config(settings)) == canonical(merge_settings({}, settings))
    usual = build_config({key: settings[key] for key in ("method", "learner") if key in settings})
    assert {key for key in vars(config) if getattr(config, key) != getattr(usual, key)} <= settings.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_of_the_command_line_and_of_papermill_make_the_same_run(home, tmp_path):
    settings = TINY | {"learner": "nq", "method": "fups", "t_max": 400, "task": "rolenav:n_agents=3"}
    command = [sys.executable, "-m", "k24lab", "train", "--quiet", "--name", "one", *flags(settings)]
    one = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    notebooks.execute("02_train", {"name": "two", "overrides": settings})
    (two,) = (home / "runs" / "two").iterdir()
    assert one.name == two.name and (two / "DONE").exists()
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()


def test_a_run_in_a_notebook_is_the_run_of_its_folder_whatever_its_learner(home, monkeypatch):
    calls = []
    monkeypatch.setattr(notebooks, "_execute", lambda *given: calls.append(given) or Path())
    for settings in SETTINGS:
        config = canonical(build_config(settings))
        notebooks.execute_run(RunFolder(run_folder(config, "g"), config).path, "02_train")
        parameters = dict(calls[-1][1])
        name, overrides = parameters.pop("name"), parameters.pop("overrides")
        assert name == "g" and canonical(merge_settings(parameters, overrides)) == config


# --- tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rolenav", "rolenav:n_agents=3"),
        ("rolenav", " rolenav :"),
        ("rolenav:n_agents=8,n_roles=2", "rolenav:n_roles=2, n_agents = 8 ,"),
        ("rolenav:n_agents=8", "rolenav:n_agents=8.0,episode_limit=25"),
        ("rolenav:n_agents=8", "rolenav:n_agents=0x8"),
        ("mpe2/simple_spread", "mpe2/simple_spread:N=3"),
        ("mpe2/simple_spread:local_ratio=0.0", "mpe2/simple_spread:local_ratio=-0.0"),
        ("mpe2/simple_spread:local_ratio=1.0", "mpe2/simple_spread:local_ratio=1"),
        ("mpe2/simple_tag", "mpe2/simple_tag:prey='flee'"),
        ("vmas/navigation", "vmas/navigation:n_agents=3,episode_limit=100,lidar_range=0.35"),
        ("vmas/dispersion", "vmas/dispersion:n_agents=4"),
        ("smax/3m", "smax/3m:episode_limit=100"),
        ("smacv2/terran_5v5", "smacv2/terran_5v5:n_agents=5,conic_fov=False"),
        ("pettingzoo/mpe2.simple_spread_v3:N=2", "pettingzoo/mpe2.simple_spread_v3 : episode_limit=None, N=2"),
    ],
)
def test_two_spellings_of_a_task_are_one_run(one, other, tmp_path):
    assert canonical_task(one) == canonical_task(other) == one
    assert canonical_task(canonical_text(other)) == one
    name, own = one.partition(":")[0], {"t_max": 64_000}
    per_task = {one: own} if one != name else {other: own}
    data = {"grids": [{"task": one}, {"task": other, "seed": 1}], "per_task": per_task}
    if not name.startswith("sma"):  # their packages are not part of the tests' environment
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(data))
        assert [(c.task, c.t_max) for c in load_grid(tmp_path / "grid.yaml").configs] == [(one, 64_000)] * 2
        data["grids"][1]["seed"] = 0
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(ConfigError, match="seed 0 is given twice"):
            load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize("task", ["rolenav:n_agents=8", "mpe2/simple_spread:N=2", "vmas/navigation:n_agents=8"])
def test_an_option_that_is_no_default_stays(task):
    assert canonical_task(task) == task
    assert make_env(task, 1).spec.n_agents == int(task[-1])


def test_tasks_without_options_import_no_environment():
    code = (
        "import sys; from k24lab.lab.config import build_config; from k24lab.lab.runs import canonical\n"
        "for task in ('rolenav:n_agents=4', 'mpe2/simple_spread ', 'vmas/navigation', 'pettingzoo/a.b:c'):\n"
        "    print(canonical(build_config({'task': task})).task)\n"
        "assert not {'mpe2', 'vmas', 'pettingzoo', 'pygame', 'a'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rolenav:n_agents=4", "mpe2/simple_spread", "vmas/navigation", "pettingzoo/a.b:c"]


@pytest.mark.parametrize("task", ["rolenav:n_agents=2,n_agents=3", "rolenav:n_agents=2, n_agents=2"])
def test_an_option_that_is_given_twice_is_refused(task, tmp_path):
    with pytest.raises(ConfigError, match=r"option n_agents is given twice, as 2 and as [23]$"):
        build_config({"task": task})
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"per_task": {task: {}}, "grids": [{}]}))
    with pytest.raises(ConfigError, match="given twice"):
        load_grid(tmp_path / "grid.yaml")


def test_settings_of_one_task_under_two_spellings_are_refused(tmp_path):
    (tmp_path / "grid.yaml").write_text("per_task: {rolenav: {lr: 0.1}, 'rolenav:n_agents=3': {lr: 0.2}}\ngrids: [{}]")
    with pytest.raises(ConfigError, match="per_task: rolenav and rolenav:n_agents=3 are the same task"):
        load_grid(tmp_path / "grid.yaml")


def test_stored_runs_keep_their_spelling_name_and_hash(home):
    fields = vars(build_config({})) | {"task": "rolenav: n_agents=3", "diversity_coef": -0.0}
    config = Config(**fields)
    folder = RunFolder(run_folder(config, "old"), config)
    assert config.hash() != canonical(build_config(fields)).hash()
    for found in (read_config(folder.path), stored_config(json.loads((folder.path / "config.json").read_text()))):
        assert found.task == "rolenav: n_agents=3" and found.hash() == config.hash()
    (folder.path / "DONE").touch()
    assert train(config, folder=folder.path) == folder.path


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "plain"),
    [
        ("mask_rnn", np.True_, True),
        ("mask_rnn", np.array(False), False),
        ("seed", np.int64(3), 3),
        ("seed", np.uint8(3), 3),
        ("t_max", np.float64(1e5), 100_000),
        ("t_max", np.array(400), 400),
        ("lr", np.float64(0.003), 0.003),
        ("lr", np.float32(0.5), 0.5),
        ("t_max", np.float32(123_456_789), 123_456_792),
        ("lr", np.int32(1), 1.0),
        ("lr", torch.tensor(0.5), 0.5),
        ("logit_scale_final", np.float16(2), 2.0),
        ("method", np.str_("fups"), "fups"),
        ("task", np.array("rolenav"), "rolenav"),
        ("diversity_coef", -0.0, 0.0),
    ],
    ids=repr,
)
def test_scalars_of_numpy_are_plain_values(key, value, plain):
    config = build_config({key: value})
    found = getattr(config, key)
    assert repr(found) == repr(plain) and config.hash() == build_config({key: plain}).hash()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("seed", np.True_, "is a bool, not an int"),
        ("mask_rnn", np.int64(1), "is an int, not a bool"),
        ("seed", np.float64(1.5), "is a float, not an int"),
        ("lr", np.array([0.1]), "is a ndarray, not a float"),
        ("method", np.array(["k24", "fups"]), "is not allowed"),
        ("lr", np.complex64(1), "is a complex, not a float"),
    ],
    ids=repr,
)
def test_what_numpy_holds_is_checked_like_any_value(key, value, reason):
    with pytest.raises(ConfigError, match=f"{key} = .* {re.escape(reason)}"):
        build_config({key: value})


# --- notebooks ---------------------------------------------------------------------------------------------------


def test_a_setting_that_a_parameter_and_overrides_give_is_refused():
    with pytest.raises(ConfigError, match=r"^given twice, as a parameter and in overrides: seed = 2 and 3$"):
        merge_settings({"seed": 2, "task": None}, {"seed": 3})
    with pytest.raises(ConfigError, match=r"in overrides: seed = 0 and 3"):
        run_notebook({"seed": 0, "overrides": {"seed": 3}})
    assert merge_settings({"seed": 2, "t_max": None}, {"t_max": 1e4}) == build_config({"seed": 2, "t_max": 10_000})


@pytest.mark.parametrize("overrides", [None, {}])
def test_overrides_may_be_empty(overrides):
    assert merge_settings({"seed": 2}, overrides) == build_config({"seed": 2})


@pytest.mark.parametrize("overrides", ["{seed: 3}", ["seed"], 3])
def test_overrides_that_are_no_settings_are_refused(overrides):
    with pytest.raises(ConfigError, match=r"overrides = .* must map settings to values"):
        merge_settings({}, overrides)


# --- budgets without an update -----------------------------------------------------------------------------------

SHORT = {"t_max": 400, "batch_size": 64, "n_envs": 4}


def test_a_run_that_cannot_fill_a_batch_is_refused_before_it_starts(home, tmp_path):
    said = (
        "t_max = 400 is over before the first update: batch_size = 64 episodes are 16 rollouts of n_envs = 4, of which "
        "the last starts after 1500 env steps at least; allowed: t_max of at least 1501, or batch_size of at most 16"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        train(build_config(SHORT), progress=False)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"common": SHORT, "grids": [{}]}))
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_grid(tmp_path / "grid.yaml")
    assert not (home / "runs").exists()


@pytest.mark.parametrize("changes", [{"t_max": 1501}, {"batch_size": 16}])
def test_the_budgets_that_the_refusal_names_are_just_enough(changes):
    folder = train(build_config(TINY | {"method": "fups", "buffer_size": 64} | SHORT | changes), progress=False)
    assert json.loads((folder / "summary.json").read_text())["updates"] == 1
    for one_less in ({"t_max": 1500}, {"batch_size": 17}):
        if one_less.keys() == changes.keys():
            with pytest.raises(ConfigError, match="before the first update"):
                train(build_config(TINY | {"method": "fups"} | SHORT | one_less), progress=False)


def test_a_run_that_ends_without_an_update_is_no_result(monkeypatch, home):
    """Where episodes may be short a run may fill its batch: only its end tells that it did not."""
    config = build_config(TINY | {"task": "mpe2/simple_spread", "method": "fups"} | SHORT | {"t_max": 200})
    with pytest.raises(RunError, match=r"no update in 200 env steps: the buffer holds 8 episodes, fewer than batch"):
        train(config, progress=False)
    folder = run_folder(config, "default")
    assert (folder / "FAILED").exists() and not (folder / "DONE").exists()


def test_every_pair_of_settings_names_no_setting_twice():
    assert not [a for a, b in itertools.combinations(SETTINGS, 2) if a == b]
