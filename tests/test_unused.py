"""Settings that change nothing: shown by training, then not counted by grids, tables and figures."""

import dataclasses
import json
import typing
import warnings
from typing import Literal, get_args, get_origin

import pytest
import yaml
from conftest import TINY

from k24lab.analysis import load as results
from k24lab.errors import ConfigError, RunWarning, warn
from k24lab.lab.config import Config, build_config
from k24lab.lab.find_runs import find_runs, read_run, variants
from k24lab.lab.grid import load_grid
from k24lab.lab.runs import RunFolder, run_folder
from k24lab.lab.train import train
from k24lab.lab.unused_settings import _log_once, idle_changes, same_run_key, unused_fields
from k24lab.methods import METHODS
from k24lab.methods.k24 import ALL_MASK_SETTINGS, OTHERS_SETTINGS

HINTS = typing.get_type_hints(Config)


def another(key, value):
    """A value that the field may have as well."""
    kind = HINTS[key]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if value is None:
        return 0.5
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else (value + 0.25) / 2


@pytest.mark.parametrize(
    "changes",
    [
        *({"method": method} for method in METHODS),
        {"score_ema_power": 0.0, "diversity_coef": 0.0, "reset_trigger": "off"},
        {"temperature_schedule": "constant", "mixer": "qmix", "target_update": "hard", "target_update_interval": 3},
        {"method": "kaleidoscope", "reset_trigger": "off", "after_anneal": "argmax"},
        {"method": "nops", "learner": "nq", "batch_size": 8, "buffer_size": 64},
        {"method": "k24-alpha", "reset_trigger": "adaptive", "reset_target": "random", "kl_threshold": 1e-6},
        {"temperature_schedule": "constant", "after_anneal": "drawn"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_run_learns_the_same_whatever_is_unused(changes, tiny_config, tmp_path):
    config = tiny_config(**({"t_max": 800, "reset_interval": 200} | changes))
    unused = unused_fields(vars(config))
    other = dataclasses.replace(config, **{key: another(key, getattr(config, key)) for key in unused})
    assert all(getattr(other, key) != getattr(config, key) for key in unused)
    learned = []
    for name, each in (("one", config), ("other", other)):
        path = train(each, folder=tmp_path / name, progress=False)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        arrays = dict(zip(("q_values", "avail_actions"), results.load_policies(read_run(path)), strict=True))
        learned.append([[row.get(key) for row in rows for key in ("loss_td", "test_return_mean")], *arrays.values()])
    (values, *arrays), (other_values, *other_arrays) = learned
    assert values == other_values and any(value is not None for value in values)
    assert all((a == b).all() for a, b in zip(arrays, other_arrays, strict=True))


TWICE = [
    ({"method": "k24-alpha"}, {"score_gradient": "all"}),
    ({"method": "fups", "agent_id": True}, {"method": "fups-id"}),
    (METHODS["k24-alpha"].settings, {"method": "k24-alpha"}),
    ({"temperature_schedule": "constant"}, {"temperature_min": 0.5}),
    ({"method": "kaleidoscope"}, {"anneal_end": 0.5}),
    ({"reset_trigger": "periodic"}, {"kl_threshold": 0.5}),
]


@pytest.mark.parametrize(("one", "change"), TWICE, ids=str)
def test_a_grid_refuses_two_spellings_of_what_is_learned(one, change, tiny_config, tmp_path):
    settings = TINY | {"t_max": 400, "reset_interval": 100} | one
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"grids": [settings, settings | change]}))
    with pytest.raises(ConfigError, match=rf"would be trained twice: .*{next(iter(change))} = "):
        load_grid(tmp_path / "grid.yaml")
    curves = []
    for name, each in (("one", settings), ("other", settings | change)):
        path = train(build_config(each), folder=tmp_path / name, progress=False)
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        curves.append([row.get(key) for row in rows for key in ("loss_td", "grad_norm", "test_return_mean")])
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"device": "cuda"}, {"device": "cuda:00"}),
    ],
)
def test_a_grid_refuses_two_names_of_a_device_or_an_environment(one, other, tmp_path):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"grids": [one, other]}))
    with pytest.raises(ConfigError, match="would be trained twice"):
        load_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("one", "change"),
    [
        ({"method": "k24-alpha", "reset_trigger": "off"}, {"after_anneal": "frozen"}),
        ({"method": "k24-alpha", "reset_trigger": "periodic"}, {"after_anneal": "drawn"}),  # resets go on
        ({"method": "k24-alpha", "diversity_coef": 1.0}, {"score_gradient": "all"}),
        ({"temperature_schedule": "constant"}, {"anneal_end": 0.5}),
        ({"method": "random24"}, {"method": "k24-alpha"}),
        ({"device": "cuda:1"}, {"device": "cuda"}),
    ],
    ids=str,
)
def test_runs_that_learn_something_else_are_two(one, change):
    assert same_run_key(build_config(one)) != same_run_key(build_config(one | change))


def test_methods_with_learned_24_masks_use_all_that_their_switches_leave():
    assert unused_fields({"method": "k24"}) == OTHERS_SETTINGS and unused_fields({"method": "a new one"}) == set()
    of_masks = ALL_MASK_SETTINGS - OTHERS_SETTINGS
    everything = {name for name, method in METHODS.items() if set(method.mask_settings) == of_masks}
    assert everything == {"k24", "k24-alpha", "k24-literal"}
    assert unused_fields({"method": "fups"}) == ALL_MASK_SETTINGS
    assert {"score_gradient", "logit_scale"} & unused_fields(vars(build_config({}))) == set()
    assert {"reset_ratio", "td_lambda", "mixing_embed_dim"} <= unused_fields(vars(build_config({})))


def test_what_was_set_in_vain_is_named():
    assert idle_changes(build_config({"method": "fups", "logit_scale": 3.0, "lr": 0.01})) == ["logit_scale"]
    assert all(idle_changes(build_config({"method": method})) == [] for method in METHODS)


def test_settings_in_vain_are_logged_once_for_all_seeds_but_not_with_a_folder(tiny_config, caplog, tmp_path):
    _log_once.cache_clear()
    changes = {"method": "fups", "alpha_lr_factor": 3.0, "reset_trigger": "off", "t_max": 200}
    train(tiny_config(**changes), folder=tmp_path / "run", progress=False)
    assert caplog.messages == []
    for seed in range(2):
        train(tiny_config(**changes, seed=seed), progress=False)
    said = "settings of no effect in this run (fups): alpha_lr_factor, reset_interval"
    assert caplog.messages == [said]


@pytest.mark.parametrize("method", ["fups", "random24"])
def test_a_grid_trains_no_run_twice_under_two_names(method, tmp_path):
    (tmp_path / "grid.yaml").write_text(f"grids: [{{method: [k24, {method}], logit_scale: [3.0, 30.0]}}]")
    message = rf"the run {method}, rolenav, seed 0 would be trained twice: logit_scale = 3\.0 and 30\.0 change nothing"
    with pytest.raises(ConfigError, match=message):
        load_grid(tmp_path / "grid.yaml")
    (tmp_path / "grid.yaml").write_text(f"grids: [{{logit_scale: [3.0, 30.0]}}, {{method: {method}}}]")
    assert len(load_grid(tmp_path / "grid.yaml").configs) == 3


def test_a_variant_is_named_by_what_its_method_uses_and_counts_a_seed_once(tiny_config):
    for config in (
        tiny_config(),
        tiny_config(logit_scale=3.0),
        tiny_config(method="fups"),
        tiny_config(method="fups", logit_scale=3.0),
        tiny_config(method="fups", seed=1),
    ):
        RunFolder(run_folder(config, "group"), config).finish({})
    with pytest.warns(RunWarning, match="1 of 5 runs in .* repeat a config"):
        runs = find_runs("group")
    assert sorted(variants(runs)) == ["fups", "fups", "k24", "k24 logit_scale=3.0"]


def test_a_warning_about_runs_is_given_each_time_and_shows_no_line_of_the_package():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as it is in a notebook, where cells are run again
        for _ in range(2):
            warn("3 of 4 runs are unfinished")
    w, _ = caught
    text = warnings.formatwarning(w.message, w.category, w.filename, w.lineno)
    assert text == "k24lab:0: RunWarning: 3 of 4 runs are unfinished\n"
