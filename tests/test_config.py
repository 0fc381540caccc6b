import dataclasses
import math

import jaxtyping
import pytest
from hypothesis import given, strategies as st

from k24lab.core.config import MaskConfig
from k24lab.errors import ConfigError, InputError, K24Error, unknown
from k24lab.lab.config import NOT_HASHED, USUAL_NAMES, Config, build_config
from k24lab.methods import METHODS


def test_unknown_keys_are_all_named_with_the_nearest_right_name():
    with pytest.raises(ConfigError) as error:
        build_config({"hiden_dim": 3, "temprature_min": 1, "zzz": 0, "lr": 0.1})
    message = str(error.value)
    assert "'hiden_dim'; did you mean 'hidden_dim'?" in message
    assert "'temprature_min'; did you mean 'temperature_min'?" in message
    assert "unknown parameter 'zzz' (allowed:" in message
    assert "'lr'" not in message


def test_names_that_other_libraries_use_lead_to_ours():
    with pytest.raises(ConfigError, match=r"unknown parameter 'learning_rate'; did you mean 'lr'\? \(allowed: "):
        build_config(learning_rate=0.1)
    fields = {field.name for field in dataclasses.fields(Config)}
    assert set(USUAL_NAMES.values()) <= fields and not fields & USUAL_NAMES.keys()


def test_settings_may_be_keywords_which_win_over_the_mapping():
    config = build_config(task="rolenav", method="k24-alpha", lr=1e-3)
    assert config == build_config({"task": "rolenav", "method": "k24-alpha", "lr": 1e-3})
    assert build_config({"lr": 0.1, "seed": 3}, lr=0.2) == build_config(lr=0.2, seed=3)
    assert build_config() == build_config({})
    with pytest.raises(ConfigError, match="'taks'; did you mean 'task'"):
        build_config(taks="rolenav")


def test_problems_of_different_kinds_are_reported_together():
    with pytest.raises(ConfigError) as error:
        build_config({"hiden_dim": 3, "lr": "x", "mixer": "vdnn"})
    assert all(part in str(error.value) for part in ("hiden_dim", "lr = 'x'", "mixer = 'vdnn'", "did you mean 'vdn'"))


@pytest.mark.parametrize(
    ("key", "given_value", "value"),
    [("t_max", 1e5, 100_000), ("lr", 1, 1.0), ("logit_scale_final", None, None), ("logit_scale_final", 3, 3.0)],
)
def test_numbers_that_lose_nothing_are_converted(key, given_value, value):
    found = getattr(build_config({key: given_value}), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("t_max", 1.5, "is a float, not an int"),
        ("t_max", "1000", "is a str, not an int"),
        ("t_max", True, "is a bool, not an int"),
        ("t_max", None, "is a NoneType, not an int"),
        ("t_max", math.inf, "is a float, not an int"),
        ("lr", "1e-3", "is a str, not a float (YAML takes it for text: write 0.001)"),
        ("reset_trigger", False, "(YAML takes off for False: write 'off')"),
        ("device", "tpu", "must be 'cpu', 'cuda' or 'cuda:<number>'"),
        ("device", "cuda:", "must be 'cpu', 'cuda' or 'cuda:<number>'"),
        ("lr", True, "is a bool, not a float"),
        ("lr", math.nan, "is not a finite number"),
        ("lr", -math.inf, "is not a finite number"),
        ("lr", [0.1], "is a list, not a float"),
        ("mask_rnn", 1, "is an int, not a bool"),
        ("task", 3, "is an int, not a str"),
        ("noise", "annealled", "did you mean 'annealed'"),
        ("noise", ["annealed"], "is not allowed"),
        ("method", "k42", "did you mean 'k24'"),
        ("logit_scale_final", "x", "is a str, not a float"),
        ("lr", 2**53 + 1, "larger than"),
        ("lr", 10**400, "larger than"),
    ],
)
def test_values_of_a_wrong_type_are_refused_with_key_value_and_reason(key, value, reason):
    with pytest.raises(ConfigError) as error:
        build_config({key: value})
    assert f"{key} = {value!r}" in str(error.value) and reason in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, 0) for key in ("hidden_dim", "t_max", "n_envs", "batch_size", "lr", "logit_scale", "log_interval")],
        *[(key, 0) for key in ("temperature_init", "temperature_mid", "temperature_min", "reset_interval")],
        *[(key, 0) for key in ("test_episodes", "n_threads", "checkpoint_interval", "updates_per_rollout")],
        *[(key, -1) for key in ("hidden_dim", "temperature_min", "seed", "diversity_coef", "epsilon_anneal_steps")],
        *[(key, v) for key in ("reset_ratio", "gamma", "epsilon_start", "ema_decay", "polyak") for v in (-0.1, 1.1)],
        *[(key, v) for key in ("score_weight_power", "score_ema_power", "anneal_end") for v in (-0.1, 1.1)],
        ("logit_scale_final", 0.0),
        ("hetero_init_scale", -0.1),
        ("kl_threshold", -1.0),
    ],
)
def test_values_out_of_range_are_errors_that_name_key_and_value(key, value):
    with pytest.raises(ConfigError, match=rf"{key} = {value!r}(\.0)? must be"):
        build_config({key: value})


def test_a_configuration_made_without_the_builder_is_checked_too():
    with pytest.raises(ConfigError, match="hidden_dim = 0 must be above 0"):
        Config(hidden_dim=0)


def test_settings_that_contradict_each_other_are_errors():
    with pytest.raises(ConfigError, match=r"anneal_start = 0\.9 must be below anneal_end = 0\.8"):
        build_config({"anneal_start": 0.9})
    with pytest.raises(ConfigError, match="batch_size = 64 must not exceed buffer_size = 32"):
        build_config({"batch_size": 64, "buffer_size": 32})


def test_random_masks_cannot_follow_the_weights():
    with pytest.raises(ConfigError, match="must be 0 with method = 'random24'"):
        build_config({"method": "random24", "score_weight_power": 0.5})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise": "anealed"}, "noise = 'anealed'.*did you mean 'annealed'"),
        ({"temperature_min": 0}, "temperature_min = 0.0 must be above 0"),
        ({"ema_decay": 1.5, "logit_scale": -1.0}, "logit_scale.*ema_decay = 1.5 must be in"),
        ({"anneal_start": 0.8}, "anneal_start = 0.8 must be below anneal_end = 0.8"),
        ({"diversity_coef_max": 0.0}, "diversity_coef_max = 0.0 must be above 0 or None"),
        ({"reset_interval": "often"}, "reset_interval = 'often' is a str, not an int"),
    ],
)
def test_settings_of_masks_alone_are_checked_too(settings, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a user
    with pytest.raises(InputError, match=said):
        MaskConfig(**settings)
    with pytest.raises(ConfigError, match=said):
        build_config(settings)


def test_several_values_out_of_range_are_reported_together():
    with pytest.raises(ConfigError, match=r"hidden_dim = 0 .*; .*gamma = 2\.0"):
        build_config({"hidden_dim": 0, "gamma": 2})


@pytest.mark.parametrize("method", METHODS)
def test_method_defaults_apply_and_a_users_value_wins(method):
    config = build_config({"method": method})
    assert all(getattr(config, key) == value for key, value in METHODS[method].settings.items())
    others = {f.name: f.default for f in dataclasses.fields(Config)} | METHODS[method].settings | {"method": method}
    assert dataclasses.asdict(config) == others
    mine = {"hidden_dim": 7, "hetero_init_scale": 0.3, "reset_trigger": "adaptive", "agent_id": False}
    config = build_config(mine | {"method": method})
    assert {key: getattr(config, key) for key in mine} == mine


def test_every_method_has_defaults_and_they_are_fields():
    assert all(method.name == name for name, method in METHODS.items())
    names = {f.name for f in dataclasses.fields(Config)}
    assert all(set(method.settings) <= names for method in METHODS.values())


def test_methods_say_whether_they_have_and_learn_masks():
    masked = {name for name, method in METHODS.items() if method.masks == "each" and method.pattern == "2:4"}
    learned = {name for name, method in METHODS.items() if method.learns_masks}
    assert masked == {"k24", "k24-alpha", "k24-literal", "k24-gains", "random24"}
    assert learned == masked - {"random24"} | {"kaleidoscope", "kaleidoscope-id", "kaleidoscope-half"}


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().lr = 1.0


def test_configuration_survives_a_round_trip_through_its_fields():
    config = build_config({"method": "k24-literal", "seed": 3, "logit_scale_final": 5})
    assert build_config(dataclasses.asdict(config)) == config


# --- hash ------------------------------------------------------------------------------------------------------


def changed(field: dataclasses.Field, value: object) -> object:
    """Another legal value of a field."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        choices = getattr(field.type, "__args__", None)
        others = {"device": "cuda", "loggers": "csv"}
        return next(c for c in choices if c != value) if choices else others.get(field.name, "other")
    if value is None:
        return 2.0
    return value + 1 if isinstance(value, int) else value * 0.8 + 0.01


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda f: f.name)
def test_hash_depends_on_every_field_that_defines_the_run(field):
    config = Config()
    other = dataclasses.replace(config, **{field.name: changed(field, getattr(config, field.name))})
    assert other != config
    assert (other.hash() == config.hash()) == (field.name in NOT_HASHED)


def test_hash_is_the_same_however_the_values_were_written():
    a = build_config({"t_max": 1e5, "lr": 1, "seed": 2})
    b = build_config({"seed": 2, "lr": 1.0, "t_max": 100_000})
    assert a.hash() == b.hash()
    assert build_config({"lr": Config().lr}).hash() == Config().hash()
    assert len(a.hash()) == 8 and int(a.hash(), 16) >= 0


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=2, unique=True))
def test_different_seeds_have_different_hashes(seeds):
    a, b = (build_config({"seed": seed}).hash() for seed in seeds)
    assert a != b


# --- messages --------------------------------------------------------------------------------------------------


def test_unknown_names_without_a_near_one_get_no_guess():
    assert unknown("task", "qqqqq", ["b", "a"]) == "unknown task 'qqqqq' (allowed: a, b)"


def test_every_user_error_is_a_k24_error():
    with pytest.raises(K24Error):
        build_config({"lr": -1})
