"""K-2:4 inside BenchMARL itself, which needs an environment of its own: `make test-benchmarl` makes it."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("benchmarl", reason="BenchMARL needs an environment of its own: make test-benchmarl")

import benchmarl.algorithms as algorithms
import torch
import torch.nn.functional as F
import yaml
from benchmarl.environments import VmasTask
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models import Gru, Mlp, MlpConfig, SequenceModelConfig
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite, Unbounded

from k24lab.core.config import MaskConfig
from k24lab.core.modules import masked_layers
from k24lab.errors import ConfigError
from k24lab.integrations.benchmarl import K24Callback, K24GruConfig, K24MlpConfig

ALGORITHMS = "Mappo Ippo Masac Maddpg Qmix Vdn Iql Isac Iddpg".split()
MODELS = {
    "mlp": lambda **rest: K24MlpConfig(num_cells=[16], **rest),
    "gru": lambda **rest: K24GruConfig(hidden_size=8, mlp_num_cells=[16], **rest),
}
ROOT = Path(__file__).parents[1]
GROUP, N_AGENTS = "agents", 3
TINY = {
    "max_n_iters": 2,
    "max_n_frames": None,
    "loggers": [],
    "create_json": False,
    "render": False,
    "evaluation_interval": 40,
    "evaluation_episodes": 2,
    "lr": 1e-2,
    "on_policy_collected_frames_per_batch": 40,
    "on_policy_n_envs_per_worker": 4,
    "on_policy_n_minibatch_iters": 2,
    "on_policy_minibatch_size": 20,
    "off_policy_collected_frames_per_batch": 40,
    "off_policy_n_envs_per_worker": 4,
    "off_policy_n_optimizer_steps": 2,
    "off_policy_train_batch_size": 20,
    "off_policy_memory_size": 1000,
}


@pytest.fixture
def make(tmp_path):
    """An experiment with VMAS navigation, not yet run; settings of the algorithm as `algorithm={...}`."""

    def experiment(name, model, critic=None, callbacks=None, algorithm=(), task="NAVIGATION", **settings):
        config = ExperimentConfig.get_from_yaml()
        for key, value in (TINY | {"save_folder": str(tmp_path)} | settings).items():
            setattr(config, key, value)
        algorithm_config = getattr(algorithms, f"{name}Config").get_from_yaml()
        for key, value in dict(algorithm).items():
            setattr(algorithm_config, key, value)
        vmas = VmasTask[task].get_from_yaml()
        vmas.config["max_steps"] = 15  # shorter than a batch: episodes end inside of training sequences
        return Experiment(
            task=vmas,
            algorithm_config=algorithm_config,
            model_config=model,
            critic_model_config=critic,
            seed=0,
            config=config,
            callbacks=[K24Callback()] if callbacks is None else callbacks,
        )

    return experiment


def policy_model(experiment):
    """The model of the policy, which acting and the loss share."""
    (model,) = (m for m in experiment.policy.modules() if m.__class__.__name__ in ("K24Mlp", "K24Gru"))
    return model


def decoupled(make, **rest):
    """MASAC with discrete actions and a critic for each agent: the one that torchrl runs under vmap with masks."""
    settings = {"prefer_continuous_actions": False, "algorithm": {"coupled_discrete_values": False}}
    return make("Masac", MODELS["mlp"](**rest), **settings)


def leaves(params, name):
    """All tensors of that name among the parameters of a loss."""
    return [value for key, value in params.items(True, True) if key[-1] == name]


def as_collected(model):
    """An input as in collection: 5 environments, one time step."""
    inputs = {(GROUP, "observation"): torch.randn(5, N_AGENTS, model.input_features)}
    return TensorDict(inputs, [5])


@pytest.fixture(scope="module")
def example():
    """The module `examples/benchmarl_navigation.py`."""
    return runpy.run_path(str(ROOT / "examples" / "benchmarl_navigation.py"))


def test_the_page_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where BenchMARL writes its folders
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "benchmarl.md").read_text(), re.DOTALL)
    small = "\n".join(f"config.{key} = {value!r}" for key, value in TINY.items())
    assert text.count('config.loggers = ["csv"]') == 1
    names = {}
    exec(text.replace('config.loggers = ["csv"]', small), names)
    assert names["experiment"].n_iters_performed == 2


def test_the_experiments_of_the_example_can_be_built(example, tmp_path):
    for method in example["METHODS"]:
        (tmp_path / method).mkdir()
        experiment = example["build"](method, 0, str(tmp_path / method), 2)
        assert bool(masked_layers(experiment.policy)) == (method not in ("shared", "separate"))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_masks(name, kind, make):
    experiment = make(name, MODELS[kind]())
    model = policy_model(experiment)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    experiment.run()
    for key, layer in masked_layers(model).items():
        assert not torch.equal(layer.hetero_alpha, before[f"{key}.hetero_alpha"])
        assert not torch.equal(layer.weight, before[f"{key}.weight"])
        # Acting sees the running activations that the loss has moved.
        assert not torch.equal(layer.ema_tracker.ema_activation, before[f"{key}.ema_tracker.ema_activation"])
        first, second, _ = layer.argmax_mask()
        assert not torch.equal(first, second)


def test_a_task_with_two_groups(make):
    experiment = make("Ippo", MODELS["mlp"](), task="SIMPLE_TAG")
    groups = set(experiment.group_map)
    assert len(groups) == 2 and set(experiment.callbacks[0].networks) == groups
    experiment.run()


def test_acting_uses_argmax_masks_and_learning_draws_them(make):
    model = policy_model(make("Qmix", MODELS["mlp"]()))
    inputs = as_collected(model)
    with torch.no_grad():
        acting = model(inputs.clone())[model.out_key]
    first, second = masked_layers(model).values()
    expected = []
    for agent in range(N_AGENTS):
        x = inputs[GROUP, "observation"][:, agent]
        hidden = F.linear(x, first.weight * first.argmax_mask()[agent], first.bias).tanh()
        expected.append(F.linear(hidden, second.weight * second.argmax_mask()[agent], second.bias))
    torch.testing.assert_close(acting, torch.stack(expected, dim=1))
    drawn, again = (model(inputs.clone())[model.out_key] for _ in range(2))
    assert not torch.equal(drawn, again) and not torch.equal(drawn, acting)


def test_the_gru_starts_anew_where_an_episode_begins(make):
    model = policy_model(make("Ippo", MODELS["gru"]()))
    x, begins = torch.randn(5, 7, N_AGENTS, model.input_features), torch.rand(5, 7, 1) < 0.3
    begins[:, 0] = True
    with torch.no_grad():
        whole = model(TensorDict({(GROUP, "observation"): x, "is_init": begins}, [5, 7]))[model.out_key]
        hidden = torch.randn(5, N_AGENTS, model.hidden_size)  # of the episode before
        for t in range(7):
            step = {(GROUP, "observation"): x[:, t], "is_init": begins[:, t], model.hidden_key: hidden}
            out = model(TensorDict(step, [5]))
            hidden = out["next", *model.hidden_key]
            torch.testing.assert_close(out[model.out_key], whole[:, t])


def test_targets_follow_masks_and_running_activations(make):
    experiment = make("Qmix", MODELS["mlp"]())
    loss = experiment.losses[GROUP]
    params, target = loss.local_value_network_params, loss.target_local_value_network_params
    start = [alpha.clone() for alpha in leaves(target, "hetero_alpha")]
    experiment.run()
    for source, followed in zip(leaves(params, "ema_activation"), leaves(target, "ema_activation"), strict=True):
        assert torch.equal(source, followed) and not torch.equal(source, torch.ones_like(source))
    for source, followed, old in zip(
        leaves(params, "hetero_alpha"), leaves(target, "hetero_alpha"), start, strict=True
    ):
        assert 0 < (followed - old).norm() < (source - old).norm()  # tau = 0.005


def test_critics_of_an_ensemble_have_masks_of_their_own(make):
    experiment = decoupled(make)
    params = experiment.losses[GROUP].qvalue_network_params
    start = [alpha.clone() for alpha in leaves(params, "hetero_alpha")]
    experiment.run()
    for alpha, old in zip(leaves(params, "hetero_alpha"), start, strict=True):
        assert alpha.shape[:2] == (2, N_AGENTS) and not torch.equal(alpha[0], alpha[1])
        assert (alpha != old).flatten(1).any(dim=1).all()
    (critic,) = (n for n in experiment.callbacks[0].networks[GROUP] if n.is_ensemble())
    assert critic.name == "qvalue_network"


def test_random_masks_stay(make):
    experiment = decoupled(make, masks="random")
    model, params = policy_model(experiment), experiment.losses[GROUP].qvalue_network_params
    masks = [layer.argmax_mask() for layer in masked_layers(model).values()]
    alphas = [alpha.clone() for alpha in leaves(params, "hetero_alpha")]
    weights = [layer.weight.clone() for layer in masked_layers(model).values()]
    experiment.run()
    for layer, mask, weight in zip(masked_layers(model).values(), masks, weights, strict=True):
        assert torch.equal(layer.argmax_mask(), mask) and not torch.equal(layer.weight, weight)
    assert all(map(torch.equal, leaves(params, "hetero_alpha"), alphas))


@pytest.mark.parametrize("name", ["Ippo", "Qmix"])
def test_mask_coefficients_learn_faster(name, make):
    experiment = make(name, MODELS["mlp"](mask_config=MaskConfig(alpha_lr_factor=7.0)), lr=1e-3)
    own = {id(layer.hetero_alpha) for layer in masked_layers(policy_model(experiment)).values()}
    optimizer = experiment.optimizers[GROUP]["loss_objective" if name == "Ippo" else "loss"]
    slow, fast = optimizer.param_groups
    assert {id(p) for p in fast["params"]} == own and not own & {id(p) for p in slow["params"]}
    assert (slow["lr"], fast["lr"]) == (1e-3, pytest.approx(7e-3)) and fast["eps"] == slow["eps"]


@pytest.mark.parametrize(("masks", "noise"), [("argmax", "none"), ("drawn", "annealed")])
def test_masks_are_annealed_with_the_frames(masks, noise, make):
    experiment = make("Ippo", MODELS["mlp"](), callbacks=[K24Callback(on_policy_masks=masks)], max_n_iters=5)
    seen = []
    layer = next(iter(masked_layers(policy_model(experiment)).values()))
    experiment.losses[GROUP].register_forward_pre_hook(lambda *_: seen.append((layer.temperature, layer.noise)))
    experiment.run()
    assert [t for t, _ in seen[::4]] == pytest.approx([5.0, 3.0, 1.0, 0.55, 0.1])
    assert [found for _, found in seen[::4]] == [noise] * 4 + ["none"]


def test_the_first_ratio_of_ppo_is_one(make):
    experiment = make("Mappo", MODELS["mlp"](), max_n_iters=1)
    divergences = []
    experiment.losses[GROUP].register_forward_hook(lambda *each: divergences.append(each[2]["kl_approx"].item()))
    experiment.run()
    assert divergences[0] == pytest.approx(0.0, abs=1e-6) and abs(divergences[-1]) > 1e-6


def test_what_is_logged(make, monkeypatch):
    experiment = make("Ippo", MODELS["mlp"](), loggers=["csv"])
    logged = {}
    log = experiment.logger.log
    monkeypatch.setattr(experiment.logger, "log", lambda values, step: (logged.update(values), log(values, step)))
    experiment.run()
    names = "temperature mask_flip_rate".split()
    assert all(f"train/{GROUP}/k24_{name}" in logged for name in names)
    for name in ("objective", "critic"):  # IPPO's critic has masks too
        assert 0 < logged[f"train/{GROUP}/k24_div_loss_{name}"] < 1
        assert 0 < logged[f"train/{GROUP}/k24_div_coef_{name}"] <= 1
    assert 0 < logged[f"train/{GROUP}/k24_mask_flip_rate"] < 1


def test_the_diversity_loss_can_be_switched_off(make):
    model = MODELS["mlp"](mask_config=MaskConfig(diversity_coef=0.0, noise="none"))
    experiment, plain = make("Ippo", model), make("Ippo", MODELS["mlp"](mask_config=MaskConfig(noise="none")))
    for each in (experiment, plain):
        (regulariser, _) = each.callbacks[0].regularisers[GROUP]
        losses = TensorDict({"loss_objective": torch.tensor(2.0)})
        regulariser.add_to(losses)
        similarity = regulariser.metrics["k24_div_loss_objective"].item()
        assert losses["loss_objective"].item() == pytest.approx(2.0 + (similarity if each is plain else 0.0))


@pytest.mark.parametrize(("kind", "theirs"), [("mlp", Mlp), ("gru", Gru)])
def test_a_centralised_critic_is_benchmarls_own(kind, theirs, make):
    experiment = make("Mappo", MODELS[kind]())
    critic = experiment.losses[GROUP].critic_network
    assert not masked_layers(critic) and any(isinstance(part, theirs) for part in critic.modules())


def test_in_a_sequence_behind_a_model_of_theirs(make):
    first = MlpConfig(num_cells=[8], layer_class=nn.Linear, activation_class=nn.Tanh)
    make("Ippo", SequenceModelConfig([first, MODELS["mlp"]()], intermediate_sizes=[6])).run()


def test_a_run_goes_on_from_a_checkpoint(make):
    experiment = make("Qmix", MODELS["mlp"](), checkpoint_at_end=True)
    experiment.run()
    (file,) = (experiment.folder_name / "checkpoints").iterdir()
    again = Experiment.reload_from_file(str(file), experiment_patch={"max_n_iters": 3})
    state, loaded = (policy_model(each).state_dict() for each in (experiment, again))
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())
    again.run()
    assert again.total_frames == 120


def test_a_configuration_from_a_file(tmp_path):
    text = {"name": "k24", "num_cells": [32], "activation_class": "torch.nn.ReLU", "mask_config": {"logit_scale": 3.0}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(text))
    config = K24MlpConfig.get_from_yaml(str(tmp_path / "model.yaml"))
    assert (config.num_cells, config.activation_class, config.mask_config.logit_scale) == ([32], nn.ReLU, 3.0)
    assert K24GruConfig.get_from_yaml() == K24GruConfig()


REFUSED = {
    "share_policy_params": lambda make: make("Ippo", MODELS["mlp"](), share_policy_params=False),
    "share_param_critic": lambda make: make("Ippo", MODELS["mlp"](), algorithm={"share_param_critic": False}),
    "collect_with_grad": lambda make: make("Ippo", MODELS["mlp"](), collect_with_grad=True),
    r"K24Callback\(\)": lambda make: make("Qmix", MODELS["mlp"](), callbacks=[]).run(),
    "masks = 'drawn'": lambda make: K24MlpConfig(masks="drawn"),
    "on_policy_masks = 'none'": lambda make: K24Callback(on_policy_masks="none"),
    "mask_config.reset_trigger": lambda make: K24MlpConfig(mask_config=MaskConfig(reset_trigger="periodic")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message, make):
    with pytest.raises(ConfigError, match=message):
        REFUSED[message](make)


def test_images_are_refused():
    shape = {"image": Unbounded(shape=(N_AGENTS, 4, 4, 3))}
    outputs = {GROUP: Composite({"logits": Unbounded(shape=(N_AGENTS, 2))}, shape=(N_AGENTS,))}
    with pytest.raises(ConfigError, match=r"\(3, 4, 4, 3\), expected \(n_agents, features\)"):
        K24MlpConfig().get_model(
            input_spec=Composite({GROUP: Composite(shape, shape=(N_AGENTS,))}),
            output_spec=Composite(outputs),
            agent_group=GROUP,
            input_has_agent_dim=True,
            n_agents=N_AGENTS,
            centralised=False,
            share_params=True,
            device="cpu",
            action_spec=Composite(),
        )
