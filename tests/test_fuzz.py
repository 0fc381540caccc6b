"""Whatever is in a file, it is read as what it is or is one error of the package: no crash, no silent guess.

`make test-faults` tries many more inputs (K24LAB_FUZZ).
"""

import dataclasses
import json
import os
import shutil
import typing
import warnings

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from k24lab.analysis import load as results
from k24lab.envs.tasks import canonical_text
from k24lab.errors import ConfigError, K24Error, RunError, RunWarning
from k24lab.inference import freeze as teams
from k24lab.inference.actor import Actor
from k24lab.lab import tensorfile
from k24lab.lab.config import Config, build_config
from k24lab.lab.find_runs import find_run, find_runs
from k24lab.lab.grid import Grid, load_grid
from k24lab.lab.importer import import_runs
from k24lab.marl.agent import build_agent

N_INPUTS = int(os.environ.get("K24LAB_FUZZ", "60"))
fuzz = settings(
    max_examples=N_INPUTS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

FIELDS = [field.name for field in dataclasses.fields(Config)]
WORDS = st.sampled_from(
    [*FIELDS, "grids", "common", "per_task", "zip", "list", "name", "notebook", "seed", "rolenav", "k24"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | WORDS
    | st.sampled_from(["1e-3", "off", "td", "vdn", 0, 1, -1, 0.5, 10**30, "../x", "random24", "vmas/navigation"])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4)
)


@fuzz
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), SCALARS | JSON, max_size=4))
def test_any_settings_are_a_configuration_or_one_error(params):
    try:
        config = build_config(params)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    hints = typing.get_type_hints(Config)
    for key, value in params.items():
        found = getattr(config, key)
        allowed = typing.get_args(hints[key]) or (hints[key],)
        assert found == (canonical_text(value) if key == "task" else value) and (
            type(found) in allowed or found in allowed
        )
    assert build_config(dataclasses.asdict(config)) == config


GRIDS = st.fixed_dictionaries(
    {},
    optional={
        "grids": st.lists(
            st.dictionaries(st.sampled_from(FIELDS) | st.sampled_from(["zip", "list"]), SCALARS | JSON, max_size=3),
            max_size=2,
        )
        | JSON,
        "common": st.dictionaries(st.sampled_from(FIELDS), SCALARS, max_size=2) | JSON,
        "per_task": st.dictionaries(st.sampled_from(["rolenav", "vmas/x"]), JSON, max_size=2) | JSON,
        "name": SCALARS,
        "notebook": SCALARS,
    },
)


@fuzz
@given(
    GRIDS.map(lambda grid: yaml.safe_dump(grid).encode()) | JSON.map(lambda x: yaml.safe_dump(x).encode()) | st.binary()
)
def test_any_grid_file_is_a_grid_or_one_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "grid.yaml"
    path.write_bytes(content)
    try:
        grid = load_grid(path)
    except ConfigError as error:
        assert "grid.yaml" in str(error)
    else:
        assert isinstance(grid, Grid) and grid.configs


def damaged(content):
    """Bytes with some of them changed, cut out or put in."""

    def change(edits):
        changed = bytearray(content)
        for at, width, new in edits:
            at %= len(changed) + 1
            changed[at : at + width] = new
        return bytes(changed)

    return st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=8)), max_size=4).map(change)


LINES = b"".join(
    json.dumps({"t_env": k * 100, "test_return_mean": 0.5 * k, "loss_td": 0.1}).encode() + b"\n" for k in range(5)
)
SETTINGS = json.dumps(dataclasses.asdict(build_config({}))).encode()
SUMMARY = json.dumps({"t_env": 400, "test_return_mean": 2.0, "unit_type_names": ["a"]}).encode()


@fuzz
@given(
    metrics=damaged(LINES) | JSON.map(lambda x: json.dumps(x).encode()),
    config=st.just(SETTINGS) | damaged(SETTINGS),
    summary=st.just(SUMMARY) | damaged(SUMMARY) | JSON.map(lambda x: json.dumps(x).encode()),
)
def test_any_run_folder_is_read_or_one_error(home, metrics, config, summary):
    folder = home / "runs" / "group" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "metrics.jsonl": metrics,
        "config.json": config,
        "summary.json": summary,
        "DONE": b"",
    }.items():
        (folder / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        for load in (results.load_metrics, results.load_summaries):
            try:
                table = load(find_runs("group"))
            except K24Error:
                continue
            assert len(table) and (table["run"] == "run").all()


@fuzz
@given(data=st.data())
def test_any_file_of_raw_summaries_is_imported_or_one_error_and_nothing_half(home, data):
    line = {
        "run": "rolenav-k24-s0-1",
        "evaluations": {"t_env": [0, 100], "test_return_mean": [0.0, 1.0]},
        "test_return_mean": 1.0,
    }
    whole = json.dumps(line | dataclasses.asdict(build_config({}))).encode() + b"\n"
    path = home / "x_runs.jsonl"
    path.write_bytes(data.draw(damaged(whole * 2) | JSON.map(lambda x: json.dumps(x).encode()) | st.binary()))
    before = sorted(home.rglob("*"))
    try:
        import_runs([path], "x")
    except K24Error:
        assert sorted(home.rglob("*")) == before
    else:
        shutil.rmtree(home / "runs", ignore_errors=True)


@pytest.fixture
def team(tiny_config):
    config = tiny_config(method="k24", hidden_dim=8)
    return teams.freeze(build_agent(config, 6, 4, 3), config, obs_dim=6, n_agents=3, t_env=0)


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64])
TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    st.lists(st.integers(0, 40), max_size=3),
    DTYPES,
    st.sampled_from([0.0, 1.0, 7.0, 255.0, float("nan"), float("inf")]),
)


@fuzz
@given(data=st.data(), dtype=st.sampled_from(["float32", "float16", "int8"]))
def test_any_forged_team_is_refused_or_acts(team, tmp_path, data, dtype):
    path = tmp_path / "team"
    teams.save_team(team, path, dtype)
    about, tensors = tensorfile.read(path, teams.FORMAT)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=3, unique=True)):
        if (new := data.draw(st.none() | TENSORS)) is None:
            del tensors[name]
        else:
            tensors[name] = new
    tensors |= data.draw(st.dictionaries(st.text(max_size=8), TENSORS, max_size=1))
    for key in data.draw(st.lists(st.sampled_from(sorted(about)), max_size=1)):
        about[key] = data.draw(st.just(about[key]).flatmap(lambda text: damaged(text.encode())) | st.binary()).decode(
            errors="replace"
        )
    with path.open("wb") as file:
        tensorfile.write(file, about, tensors)
    try:
        read = teams.load_team(path)
    except RunError:
        return
    assert Actor(read).q_values(torch.zeros(read.n_agents, 2, read.input_dim)).shape == (
        read.n_agents,
        2,
        read.n_actions,
    )


@fuzz
@given(data=st.data())
def test_any_file_of_masks_or_policies_is_read_or_one_error(home, data):
    folder = home / "runs" / "group" / "run"
    (folder / "patterns").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(SETTINGS)
    (folder / "DONE").touch()
    arrays = {
        "fc1/pattern_index": np.zeros((2, 3, 4), np.uint8),
        "fc1/pattern_probs": np.zeros((2, 3, 4, 6), np.float16),
    }
    np.savez_compressed(home / "whole.npz", **arrays)
    content = data.draw(damaged((home / "whole.npz").read_bytes()) | st.binary())
    (folder / "patterns" / "0000000100.npz").write_bytes(content)
    (folder / "policy.npz").write_bytes(content)
    run = find_run("group")
    for load in (results.load_patterns, results.load_policies):
        try:
            load(run)
        except RunError as error:
            assert "npz" in str(error)
