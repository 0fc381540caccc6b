"""K-2:4 into a checkout of epymarl or pymarl2 and out again, its names and settings there, tried on `fake_epymarl`."""

import importlib
import subprocess
import sys
from pathlib import Path

import epymarl_learners
import pytest
import torch
import yaml
from epymarl_learners import build, make_args
from fake_epymarl import make_batch, write_checkout

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl import install, register
from k24lab.integrations.epymarl.configs import KEYS, MASK_KEYS, TYPE_KEYS, config_files
from k24lab.integrations.epymarl.install import integrate, recognise, remove
from k24lab.integrations.epymarl.settings import read_settings
from k24lab.lab.config import build_config
from k24lab.marl.agent import RNNAgent

running = epymarl_learners.running  # a fixture

FLAVOURS = ("epymarl", "pymarl2")
CONFIGS = [(flavour, name) for flavour in FLAVOURS for name in config_files(flavour)]


@pytest.fixture(params=FLAVOURS)
def checkout(request, tmp_path) -> Path:
    """A folder that looks like either code base, untouched."""
    return write_checkout(tmp_path / request.param, request.param)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- into a checkout and out again -----------------------------------------------------------------------------


def test_integrating_adds_files_and_one_line_and_removing_restores_every_byte(checkout):
    before = contents(checkout)
    said = integrate(checkout)
    after = contents(checkout)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"src/learners/__init__.py", *(f"src/config/algs/{name}" for name in config_files("epymarl"))}
    assert after["src/learners/__init__.py"].startswith(before["src/learners/__init__.py"])
    assert all(any(name in line for line in said) for name in changed)
    remove(checkout)
    assert contents(checkout) == before


@pytest.mark.parametrize(
    "text", [b"REGISTRY = {}\n", b"REGISTRY = {}", b"REGISTRY = {}\r\nA = 1\r\n", b"A = 1\r\nB = {}"]
)
def test_the_line_comes_and_goes_whatever_ends_a_line(text, checkout):
    file = checkout / install.REGISTRY_FILE
    file.write_bytes(text)
    integrate(checkout)
    first = file.read_bytes()
    assert first.count(install.CALL) == 1 and first.splitlines()[-1] == install.LINE
    integrate(checkout)
    assert file.read_bytes() == first
    remove(checkout)
    assert file.read_bytes() == text


def test_integrating_twice_is_as_once_and_says_so(checkout):
    integrate(checkout)
    once = contents(checkout)
    assert any("unchanged" in line for line in integrate(checkout))
    assert contents(checkout) == once
    remove(checkout)
    assert any("unchanged" in line for line in remove(checkout))


def test_a_line_of_another_version_is_replaced_and_removed(checkout):
    file = checkout / install.REGISTRY_FILE
    for act, expected in ((integrate, b"A = {}\n" + install.BLOCK), (remove, b"A = {}\n")):
        file.write_bytes(b"A = {}\n" + install.CALL + b"  # in other words\n")
        act(checkout)
        assert file.read_bytes() == expected


def test_a_configuration_that_was_edited_is_never_overwritten_nor_removed(checkout):
    integrate(checkout)
    path = checkout / "src/config/algs/k24_vdn.yaml"
    edited = path.read_text() + "lr: 0.1\n"
    path.write_text(edited)
    before = contents(checkout)
    with pytest.raises(
        ConfigError, match=r"algs/k24_vdn\.yaml: not as this .*; rename or delete it, nothing was changed"
    ):
        integrate(checkout)
    assert contents(checkout) == before
    assert any("kept" in line and "k24_vdn.yaml" in line for line in remove(checkout))
    assert path.read_text() == edited and not (checkout / "src/config/algs/k24_qmix.yaml").exists()


def test_a_file_of_somebody_elses_is_an_error_before_anything_is_changed(checkout):
    (checkout / "src/config/algs/random24_vdn.yaml").write_text("mine: 1\n")
    before = contents(checkout)
    with pytest.raises(ConfigError, match=r"random24_vdn\.yaml: .*, nothing was changed$"):
        integrate(checkout)
    assert contents(checkout) == before


def test_another_folder_is_refused_by_what_it_lacks(checkout, tmp_path):
    with pytest.raises(ConfigError, match=r"no checkout of epymarl or pymarl2: src/main\.py, .*missing$"):
        integrate(tmp_path)
    with pytest.raises(ConfigError, match=f"did you mean {checkout}"):
        integrate(checkout / "src")
    flavour = recognise(checkout)
    (checkout / install.OWN[flavour][0]).unlink()
    with pytest.raises(ConfigError, match=rf"neither; missing are .*for {flavour} {install.OWN[flavour][0]}"):
        integrate(checkout)


def test_the_command_says_what_it_did_and_an_error_is_one_line(checkout, tmp_path):
    def command(*args):
        line = [sys.executable, "-m", "k24lab.integrations.epymarl", *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True)

    assert "changed  src/learners/__init__.py" in command(checkout).stdout
    assert "removed  src/config/algs/k24_qmix.yaml" in command(checkout, "--remove").stdout
    failed = command(tmp_path / "nowhere")
    assert failed.returncode == 2 and failed.stderr.startswith("k24lab: error: ") and failed.stderr.count("\n") == 1


def test_their_own_command_trains_with_our_configuration(tmp_path):
    checkout = write_checkout(tmp_path, "pymarl2")
    integrate(checkout)
    done = subprocess.run(
        [sys.executable, "src/main.py", "--config=k24_type_qmix"], cwd=checkout, capture_output=True, text=True
    )
    assert "trained RNNAgent" in done.stdout, done.stderr


# --- registries ------------------------------------------------------------------------------------------------


def test_registering_twice_is_as_once_and_leaves_the_others(running):
    running()
    registries = [importlib.import_module(name).REGISTRY for name in ("modules.agents", "controllers", "learners")]
    before = [dict(registry) for registry in registries]
    register()
    assert [dict(registry) for registry in registries] == before
    assert [set(registry) - {"theirs"} for registry in registries] == [
        {"k24", "k24_type"},
        {"k24_mac"},
        {"k24_learner", "k24_nq_learner"},
    ]
    assert all(registry["theirs"] is object for registry in registries)


def test_a_name_that_is_taken_is_an_error(running):
    running()
    importlib.import_module("controllers").REGISTRY["k24_mac"] = object
    with pytest.raises(ConfigError, match=r"controllers\.REGISTRY has another 'k24_mac'"):
        register()


def test_registering_outside_a_checkout_is_an_error_that_says_where():
    with pytest.raises(ConfigError, match="the src folder of epymarl or pymarl2"):
        register()


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flavour", "name"), CONFIGS)
def test_every_configuration_builds_acts_and_trains(flavour, name, running):
    running(flavour)
    args = make_args(flavour, name)
    learner = build(args)
    n_masks = 3 if "type" in name else 2
    assert type(learner.agent) is RNNAgent and learner.n_masks == n_masks
    assert all(layer.n_masks == n_masks for layer in learner.masked_layers.values())
    assert args.name == name.removesuffix(".yaml") and not args.obs_agent_id
    learner.train(make_batch(args), t_env=10, episode_num=1)
    assert torch.tensor(learner.logger.stats["loss_td"][0][1]).isfinite()
    actions = learner.mac.select_actions(make_batch(args), t_ep=0, t_env=0, bs=[0, 2], test_mode=True)
    assert actions.shape == (2, 2)


def test_the_learning_is_set_by_their_keys_and_the_masks_by_ours():
    args = make_args(lr=0.01, gamma=0.5, hidden_dim=32, t_max=5e5, mixer=None, k24_args={"logit_scale": 3})
    config = read_settings(args).config
    assert (config.lr, config.lr_final, config.gamma, config.hidden_dim) == (0.01, 0.01, 0.5, 32)
    assert (config.t_max, config.mixer, config.logit_scale, config.method) == (500_000, "none", 3.0, "k24")
    assert read_settings(make_args(k24_args={"lr_final": 0.0})).config.lr_final == 0
    assert read_settings(make_args(name="k24_alpha_vdn.yaml")).config.noise == "none"  # the method's own default
    pymarl2 = read_settings(make_args("pymarl2", rnn_hidden_dim=24)).config
    assert (pymarl2.hidden_dim, pymarl2.learner, pymarl2.td_lambda) == (24, "nq", 0.6)


@pytest.mark.parametrize(
    ("flavour", "changes", "expected"),
    [
        ("epymarl", {"target_update_interval_or_tau": 200}, ("hard", 200)),
        ("epymarl", {"target_update_interval_or_tau": 0.01}, ("polyak", 0.01)),
        ("pymarl2", {"target_update_interval": 200, "batch_size_run": 8}, ("hard", 25)),  # they count episodes
        ("pymarl2", {"target_update_interval": 1, "batch_size_run": 8}, ("hard", 1)),
    ],
)
def test_target_updates_are_counted_as_in_the_checkout(flavour, changes, expected):
    config = read_settings(make_args(flavour, **changes)).config
    value = config.polyak if config.target_update == "polyak" else config.target_update_interval
    assert (config.target_update, value) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"logit_scal": 3.0}, r"k24_args\.logit_scal = 3\.0: unknown key 'logit_scal'; did you mean 'logit_scale'"),
        ({"lr": 0.1}, r"k24_args\.lr = 0\.1: lr is a setting of its own here"),
        ({"noise": "loud"}, r"noise = 'loud' is not allowed: .*annealed, literal, none"),
        ({"method": "k25"}, "method = 'k25' is not allowed: unknown choice 'k25'; did you mean 'k24'"),
        ({"logit_scale": -1.0}, r"logit_scale = -1\.0 must be above 0"),
        ({"n_unit_types": 3}, "are for agent = 'k24_type', not 'k24'"),
    ],
)
def test_an_entry_of_k24_args_that_cannot_be_is_an_error_with_key_value_and_what_is_allowed(given, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(make_args(k24_args=given))


@pytest.mark.parametrize(("flavour", "name"), CONFIGS)
def test_a_file_lists_every_key_because_sacred_adds_none_and_null_is_the_methods_default(flavour, name):
    listed = yaml.safe_load(config_files(flavour)[name])["k24_args"]
    assert set(listed) == set(KEYS) - (set() if "type" in name else set(TYPE_KEYS))
    config = read_settings(make_args(flavour, name)).config
    defaults = build_config({"method": listed["method"]})
    assert all(getattr(config, key) == getattr(defaults, key) for key in ("alpha_lr_factor", *MASK_KEYS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_rnn": False}, "use_rnn = False must be True"),
        (
            {"double_q": False, "common_reward": False},
            "common_reward = False must be True .*; double_q = False must be",
        ),
        ({"use_per": True}, "use_per = True must be False"),
        ({"q_lambda": True}, "q_lambda = True must be False"),
        ({"optimizer": "rmsprop"}, "optimizer = 'rmsprop' must be 'adam'"),
        ({"mixer": "qatten"}, "mixer = 'qatten' is not allowed"),
    ],
)
def test_what_the_learner_cannot_do_is_refused_not_ignored(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(make_args("pymarl2", **changes))


def test_parts_that_do_not_belong_together_are_refused(running):
    running()
    with pytest.raises(ConfigError, match="learner = 'k24_learner' needs mac = 'k24_mac', not 'basic_mac'"):
        importlib.import_module("controllers").REGISTRY["basic_mac"] = lambda *_: object()
        build(make_args(mac="basic_mac"))
    importlib.import_module("modules.agents").REGISTRY["rnn"] = lambda *_: torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match="needs agent = 'k24' or 'k24_type', not 'rnn'"):
        build(make_args(agent="rnn"))
