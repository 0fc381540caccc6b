"""K-2:4 inside a checkout of epymarl or pymarl2, tried on a stub of their interfaces (`fake_epymarl`)."""

import copy
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_epymarl
import pytest
import torch
import yaml
from fake_epymarl import Logger, make_batch, write_checkout

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl import install, register
from k24lab.integrations.epymarl.batches import observations, to_episodes
from k24lab.integrations.epymarl.configs import KEYS, MASK_KEYS, TYPE_KEYS, config_files
from k24lab.integrations.epymarl.install import integrate, recognise, remove
from k24lab.integrations.epymarl.settings import read_settings
from k24lab.lab.config import build_config
from k24lab.marl.agent import RNNAgent
from k24lab.marl.learner import build_learner

FLAVOURS = ("epymarl", "pymarl2")
CONFIGS = [(flavour, name) for flavour in FLAVOURS for name in config_files(flavour)]
THEIRS = ("modules", "controllers", "learners", "components")


@pytest.fixture(params=FLAVOURS)
def checkout(request, tmp_path) -> Path:
    """A folder that looks like either code base, untouched."""
    return write_checkout(tmp_path / request.param, request.param)


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Import from the src folder of a checkout with the line in it, as its `python src/main.py` would."""

    def enter(flavour: str = "epymarl") -> Path:
        folder = write_checkout(tmp_path / flavour, flavour)
        integrate(folder)
        monkeypatch.syspath_prepend(str(folder / "src"))
        _forget()
        importlib.import_module("learners")
        return folder

    yield enter
    _forget()


def _forget() -> None:
    """Drop the checkout's modules, which have such common names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in THEIRS]:
        del sys.modules[name]


def make_args(flavour: str = "epymarl", name: str = "k24_vdn.yaml", k24_args=None, **changes) -> SimpleNamespace:
    """What their run loop makes of our configuration: their defaults, our file, the command line."""
    defaults = yaml.safe_load(fake_epymarl.FLAVOURS[flavour]["src/config/default.yaml"])
    ours = yaml.safe_load(config_files(flavour)[name])
    found = {"device": "cpu", "n_agents": 2, "n_actions": 3, "state_shape": 4}
    args = SimpleNamespace(**defaults | ours | found | {"batch_size": 4, "buffer_size": 32, "t_max": 1000} | changes)
    args.k24_args = ours["k24_args"] | (k24_args or {})
    return args


def build(args: SimpleNamespace):
    """The learner, as their run loop builds it; its controller is `learner.mac`."""
    torch.manual_seed(0)
    mac = importlib.import_module("controllers").REGISTRY[args.mac](fake_epymarl.SCHEME, {"agents": 2}, args)
    return importlib.import_module("learners").REGISTRY[args.learner](mac, fake_epymarl.SCHEME, Logger(), args)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def acted_q_values(mac, batch) -> torch.Tensor:
    """Q-values [B, T1, N, A] step by step, as a runner asks for them."""
    mac.init_hidden(batch.batch_size)
    return torch.stack([mac.forward(batch, t, test_mode=True) for t in range(batch["obs"].shape[1])], dim=1)


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


# --- learning --------------------------------------------------------------------------------------------------


def train(args: SimpleNamespace, updates: int):
    """A learner after some updates, and the TD loss of every tenth."""
    args.learner_log_interval = 10
    learner = build(args)
    for k in range(updates):
        learner.train(make_batch(args, n=16, seed=k), t_env=k, episode_num=k)
    return learner, [value for _, value in learner.logger.stats["loss_td"]]


def test_agents_that_see_the_same_learn_to_differ_with_masks_and_cannot_without(running):
    running()
    # gamma: what is learned must not grow for longer than the test.
    changes = {"t_max": 120, "target_update_interval_or_tau": 10, "standardise_rewards": False, "gamma": 0.3}
    learner, k24 = train(make_args(**changes), updates=120)
    _, shared = train(make_args(k24_args={"method": "fups"}, **changes), updates=120)
    assert k24[-1] < 0.2 * k24[0] and k24[-1] < 0.3 * shared[-1]
    actions = learner.mac.select_actions(make_batch(learner.args, n=2), t_ep=0, t_env=10**6, test_mode=True)
    assert actions.tolist() == [[0, 1], [0, 1]]  # agent i is paid for action i


def test_masks_stay_exactly_2_4_and_are_drawn_once_an_update(running, monkeypatch):
    running()
    learner, _ = train(make_args(), updates=10)
    for name, layer in learner.masked_layers.items():
        kept = (learner.agent.argmax_weights()[name].weight != 0).float()
        missing = -layer.in_features % 4
        groups = torch.nn.functional.pad(kept, (0, missing), value=0.5).unflatten(-1, (-1, 4)).sum(dim=-1)
        assert (groups.floor() <= 2).all() and (groups[..., : layer.in_features // 4] == 2).all(), name
    drawn, draw = [], learner.scheme.draw
    monkeypatch.setattr(learner.scheme, "draw", lambda layers, t_env, g: drawn.append(t_env) or draw(layers, t_env, g))
    learner.train(make_batch(learner.args), t_env=30, episode_num=1)
    assert drawn == [30]


def test_hetero_alpha_is_learned_in_a_group_of_its_own(running):
    running()
    learner = build(make_args())
    alphas = [layer.hetero_alpha for layer in learner.masked_layers.values()]
    before = [alpha.detach().clone() for alpha in alphas]
    learner.train(make_batch(learner.args), t_env=10, episode_num=1)
    assert all(alpha.grad.abs().sum() > 0 for alpha in alphas)
    assert all(not torch.equal(a, b) for a, b in zip(alphas, before, strict=True))
    others, own = learner.optimizer.param_groups
    assert list(map(id, own["params"])) == list(map(id, alphas))
    assert own["lr"] == pytest.approx(20 * others["lr"]) and others["lr"] == 0.005


@pytest.mark.parametrize("learner", ["k24_learner", "k24_nq_learner"])
@pytest.mark.parametrize("changes", [{}, {"obs_last_action": True, "obs_agent_id": True}, {"agent": "k24_type"}])
def test_an_update_is_k24labs_own_update(changes, learner, running):
    """Their batch, mixer and arguments in; what comes out is what `k24lab train` would have computed."""
    running()
    types = {"n_unit_types": 3, "unit_type_start": -3} if "agent" in changes else {}
    args = make_args(learner=learner, td_lambda=0.7, standardise_rewards=False, k24_args=types, **changes)
    theirs = build(args)
    ours = build_learner(replace(theirs.config, mixer="vdn"), theirs.spec)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for t_env in (10, 20, 900):
        batch = make_batch(args, seed=t_env)
        theirs.train(batch, t_env, episode_num=1)
        ours.update(to_episodes(batch, theirs.mac.settings), t_env)
    for name, value in ours.agent.state_dict().items():
        assert torch.equal(value, theirs.agent.state_dict()[name]), name


@pytest.mark.parametrize("changes", [{}, {"obs_last_action": True}, {"obs_agent_id": True}, {"agent": "k24_type"}])
def test_acting_step_by_step_equals_an_unroll_under_the_argmax_masks(changes, running):
    running()
    types = {"n_unit_types": 3, "unit_type_start": -3} if "agent" in changes else {}
    learner = build(make_args(k24_args=types, **changes))
    batch = make_batch(learner.args)
    acted = acted_q_values(learner.mac, batch)
    episodes = to_episodes(batch, learner.mac.settings)
    order = (episodes.filled.sum(dim=1)).tolist()
    assert order == sorted(order, reverse=True)
    with torch.no_grad():
        rows = learner.rows(episodes.unit_type)
        q_values = learner._unroll(episodes, rows, learner.argmax_weights()).q_values  # [N, T1, B, A]
    lengths = (batch["filled"].sum(dim=1) - 1).squeeze(-1)
    terminal = batch["terminated"].sum(dim=1).squeeze(-1).bool()
    assert (terminal == (lengths < 4)).all()
    back = lengths.argsort(descending=True, stable=True).argsort()
    for b, length in enumerate(lengths.tolist()):
        expected = q_values[:, : length + 1, back[b]].transpose(0, 1)
        torch.testing.assert_close(acted[b, : length + 1], expected, atol=1e-5, rtol=1e-5)


def test_what_was_learned_takes_effect_with_the_next_episode(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    before = acted_q_values(learner.mac, batch)
    learner.train(batch, t_env=10, episode_num=1)
    after = acted_q_values(learner.mac, batch)
    assert not torch.allclose(after, before)
    assert torch.equal(after, acted_q_values(learner.mac, batch))


def test_acting_keeps_to_available_actions_and_gives_no_gradient(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    only = torch.zeros_like(batch["avail_actions"])
    only[..., 1] = 1
    actions = learner.mac.select_actions(batch.with_values(avail_actions=only), t_ep=0, t_env=0)
    assert (actions == 1).all() and not learner.mac.hidden_states.requires_grad


def test_the_last_action_follows_the_observation_and_is_nothing_at_first():
    batch = make_batch(make_args())
    seen = observations(batch, 0, 5, last_action=True)
    obs, before = seen.split([fake_epymarl.N_OBS, 3], dim=-1)
    assert torch.equal(obs, batch["obs"]) and torch.equal(before[:, 1:], batch["actions_onehot"][:, :-1])
    assert before[:, 1].any() and not before[:, 0].any()
    for t in range(5):
        assert torch.equal(observations(batch, t, t + 1, last_action=True), seen[:, t : t + 1])


def test_the_observation_behind_the_end_of_an_episode_and_padding_teach_nothing(running):
    running()
    args = make_args(standardise_rewards=False)
    batch = make_batch(args)
    after = batch["terminated"].bool().cumsum(dim=1) > 0
    behind = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)  # [B, T1, 1]
    assert behind.any()
    garbage = batch.with_values(
        obs=torch.where(behind.unsqueeze(-1), 7.0, batch["obs"]), reward=torch.where(behind, 9.0, batch["reward"])
    )
    states = []
    for given in (batch, garbage):
        learner = build(args)
        for k in range(2):
            learner.train(given, t_env=10 * k, episode_num=k)
        states.append(learner.agent.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_standardised_rewards_have_no_scale(running):
    running()
    ends = []
    for scale, shift in ((1.0, 0.0), (100.0, -50.0)):
        learner = build(make_args(standardise_rewards=True))
        batch = make_batch(learner.args)
        learner.train(batch.with_values(reward=batch["reward"] * scale + shift), t_env=10, episode_num=1)
        ends.append(learner.logger.stats["loss_td"][0][1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    plain = build(make_args(standardise_rewards=False))
    plain.train(make_batch(plain.args), t_env=10, episode_num=1)
    assert plain.logger.stats["loss_td"][0][1] != pytest.approx(ends[0], rel=1e-3)


def test_standardised_returns_are_learned_on_their_own_scale(running):
    running()
    learner = build(make_args(standardise_returns=True, standardise_rewards=False))
    episodes = to_episodes(make_batch(learner.args, n=64), learner.mac.settings)
    episodes = replace(episodes, reward=1000 * episodes.reward)
    values = torch.zeros(1, *episodes.reward.T.shape)
    targets = learner._targets(episodes, values)[0][episodes.filled.T]
    assert targets.mean().abs() < 0.05 and targets.std() == pytest.approx(1, abs=0.05)
    moments = learner.moments["returns"]
    again = learner._targets(replace(episodes, terminated=torch.zeros_like(episodes.terminated)), values)
    assert moments.mean.item() > 100 and again.abs().max() < 10


def test_metrics_of_the_specification_are_logged_at_their_interval(running):
    running()
    learner = build(make_args(learner_log_interval=100))
    for t_env in (0, 50, 100, 150, 210):
        learner.train(make_batch(learner.args), t_env, episode_num=1)
    stats = learner.logger.stats
    assert [t for t, _ in stats["loss_td"]] == [0, 100, 210]
    expected = {"div_loss", "div_coef", "loss", "grad_norm", "temperature", "pattern_mean_similarity", "train_eval_gap"}
    expected |= {"q_taken_mean", "target_mean", "td_error_abs", "mask_flip_rate", "pattern_entropy"}
    assert expected | {"sparsity_layer_fc2", "pattern_0_prob"} <= stats.keys()
    assert stats["sparsity_layer_fc2"][0][1] == 0.5
    assert all(type(value) is float for entries in stats.values() for _, value in entries)


@pytest.mark.parametrize("name", ["k24_qmix.yaml", "k24_type_vdn.yaml"])
def test_a_loaded_learner_goes_on_as_the_saved_one(name, running, tmp_path):
    running()
    args = make_args(name=name)
    saved = build(args)
    for k in range(3):
        saved.train(make_batch(args, seed=k), t_env=100 * k, episode_num=k)
    saved.save_models(str(tmp_path))
    assert {"agent.th", "mixer.th", "opt.th", "k24.th"} <= {path.name for path in tmp_path.iterdir()}
    loaded = build(args)
    loaded.cuda()
    loaded.load_models(str(tmp_path))
    for learner in (saved, loaded):
        learner.train(make_batch(args, seed=9), t_env=400, episode_num=9)
    for part in ("agent", "mixer", "target_agent", "target_mixer"):
        theirs = getattr(loaded, part).state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in getattr(saved, part).state_dict().items()), part
    batch = make_batch(args)
    assert torch.equal(acted_q_values(saved.mac, batch), acted_q_values(loaded.mac, batch))


# --- unit types ------------------------------------------------------------------------------------------------


def typed(running, **changes):
    """A learner with a mask per unit type."""
    running()
    return build(make_args(name="k24_type_vdn.yaml", **changes))


def test_a_unit_acts_through_the_mask_of_the_type_it_shows(running):
    learner = typed(running)
    batch = make_batch(learner.args)
    swapped = batch.with_values(obs=batch["obs"].flip(dims=(2,)))
    acted = acted_q_values(learner.mac, batch)
    torch.testing.assert_close(acted_q_values(learner.mac, swapped), acted.flip(dims=(2,)))
    types = batch["obs"][:, 0, :, -3:].argmax(dim=-1)
    same = types[:, 0] == types[:, 1]
    assert same.any() and not same.all()
    torch.testing.assert_close(acted[same, 0, 0], acted[same, 0, 1])
    assert not torch.allclose(acted[~same, 0, 0], acted[~same, 0, 1])


def test_a_dead_unit_keeps_the_type_of_the_reset_and_counts_nowhere(running):
    learner = typed(running)
    batch = make_batch(learner.args)
    obs = batch["obs"].clone()
    obs[:, 2:, 0] = 0  # unit 0 dies after two steps
    obs[1, :, 1] = 0  # unit 1 of one episode is never there
    dead = batch.with_values(obs=obs)
    episodes = to_episodes(dead, learner.mac.settings)
    plain = to_episodes(batch, learner.mac.settings)
    assert torch.equal(episodes.unit_type[:, 0], plain.unit_type[:, 0])
    assert not episodes.alive[:, 2:, 0].any()
    never = ~episodes.alive[:, :, 1].any(dim=1)
    assert never.sum() == 1 and (episodes.unit_type[never, 1] == 0).all()
    # What a dead unit sees moves no running activation.
    obs[:, 2:, 0, 0] = 50.0
    emas = []
    for given in (dead, batch.with_values(obs=obs)):
        each = build(learner.args)
        each.train(given, t_env=10, episode_num=1)
        emas.append(each.masked_layers["fc1"].ema_tracker.ema_activation)
    torch.testing.assert_close(emas[0], emas[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit_type_start": 2}, r"obs\[2:5\] is \[1\.0, 1\.0, .*neither a one-hot nor all zeros"),
        ({"unit_type_start": 5}, "is not inside an observation of 7 numbers"),
        ({"unit_type_start": -2}, "is not inside an observation of 7 numbers"),
        ({"n_unit_types": None}, r"k24_args\.n_unit_types = None must be a whole number"),
        ({"n_unit_types": 0}, r"k24_args\.n_unit_types = 0 must be .*at least 1"),
    ],
)
def test_a_wrong_place_of_the_unit_type_is_an_error(given, message, running):
    with pytest.raises(ConfigError, match=message):
        learner = typed(running, k24_args=given)
        batch = make_batch(learner.args)
        learner.mac.init_hidden(batch.batch_size)
        learner.mac.select_actions(batch, t_ep=0, t_env=0)


def test_units_that_see_nothing_and_have_no_choice_do_not_count_for_masks_per_agent_either(running):
    running()
    learner = build(make_args())
    batch = make_batch(learner.args)
    obs, avail = batch["obs"].clone(), batch["avail_actions"].clone()
    obs[:, :, 0] = 0
    assert to_episodes(batch.with_values(obs=obs), learner.mac.settings).alive[0].all()  # it still has a choice
    avail[:, :, 0, 1:] = 0
    alive = to_episodes(batch.with_values(obs=obs, avail_actions=avail), learner.mac.settings).alive
    assert not alive[:, :, 0].any() and alive[0, :, 1].all()
