"""What agents have of their own on a common network (gains, ids, generated layers), and how fast it learns."""

import copy
import math

import pytest
import torch

from k24lab.core.gains import Gains, IdLinear, shrink_to_mean
from k24lab.core.hypernetwork import GAIN, HIDDEN, HyperLinear, fresh_embedding
from k24lab.core.layers import DenseLinear
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent
from k24lab.marl.learner import build_learner
from k24lab.methods.base import LAYERS


def test_gains_scale_each_neuron_and_add_to_it():
    gains, weight, bias, x = Gains(2, 3), torch.randn(1, 3, 4), torch.randn(1, 3), torch.randn(4)
    with torch.no_grad():
        gains.gain.normal_(), gains.bias.normal_()
    for i, (w, b) in enumerate(zip(*gains(weight, bias), strict=True)):
        torch.testing.assert_close(w @ x + b, (1 + gains.gain[i]) * (weight[0] @ x) + bias[0] + gains.bias[i])


def test_agents_with_fresh_gains_are_alike():
    weight, bias = torch.randn(1, 3, 4), torch.randn(1, 3)
    for w, b in zip(*Gains(2, 3)(weight, bias), strict=True):
        assert torch.equal(w, weight[0]) and torch.equal(b, bias[0])


def test_columns_for_ids_start_as_those_of_a_dense_layer():
    torch.manual_seed(0)
    dense = DenseLinear(7, 5)
    torch.manual_seed(0)
    apart = IdLinear(7, 5, 3)
    for found, expected in zip(apart.effective(), dense.effective(), strict=True):
        assert torch.equal(found, expected)
    assert apart.ids.shape == (1, 5, 3) and torch.equal(apart.ids, dense.weight[:, :, 4:])


@pytest.mark.parametrize(
    ("changes", "apart"), [({}, False), ({"own_lr_factor": 5.0}, True), ({"lr_factor_ramp": 0.5}, True)]
)
def test_ids_are_apart_only_if_they_learn_at_a_rate_of_their_own(changes, apart):
    agent = build_agent(build_config({"method": "fups-id"} | changes), 7, 5, 3)
    assert isinstance(agent.layers["fc1"], IdLinear) == apart
    config = build_config({"method": "fups-id", "agent_id": False, "own_lr_factor": 5.0})
    assert isinstance(build_agent(config, 7, 5, 3).layers["fc1"], DenseLinear)


def test_a_generated_layer_starts_as_a_sum_of_orthogonal_matrices_without_bias():
    torch.manual_seed(0)
    embedding = fresh_embedding(3, 16)
    torch.testing.assert_close(embedding @ embedding.T, 2.0 * torch.eye(3))
    layer = HyperLinear(6, 4, embedding, gain=0.5)
    weight, bias = layer.effective()
    assert weight.shape == (3, 4, 6) and not bias.any()
    for start in layer.weight_head.weight.T.reshape(HIDDEN, 4, 6):
        torch.testing.assert_close(start @ start.T, 0.25 * torch.eye(4))
    units = (layer.for_weight.weight @ embedding[1]).relu()
    expected = sum(u * s for u, s in zip(units, layer.weight_head.weight.T.reshape(HIDDEN, 4, 6), strict=True))
    torch.testing.assert_close(weight[1], expected)
    hidden = layer.for_weight.weight
    torch.testing.assert_close(hidden.T @ hidden, GAIN**2 * torch.eye(16))


def test_generated_layers_lie_behind_the_gru_and_read_one_embedding():
    agent = build_agent(build_config({"method": "hyper", "embedding_dim": 4}), 7, 5, 3)
    made = {name for name in LAYERS if isinstance(agent.layers[name], HyperLinear)}
    assert made == {"fc2", "fc3", "fc4"}
    assert len({id(agent.layers[name].embedding) for name in made}) == 1
    starts = {name: agent.layers[name].weight_head.weight[:, 0].norm().item() for name in made}
    assert starts["fc2"] == pytest.approx(math.sqrt(2 * 64), rel=1e-4)
    assert starts["fc4"] == pytest.approx(math.sqrt(5), rel=1e-4)  # five orthonormal rows: the gain of a value


@pytest.mark.parametrize(
    ("changes", "layers"),
    [({"method": "gains"}, LAYERS), ({"method": "gains24", "gain_layers": "fc1"}, ("fc1",)), ({"method": "fups"}, ())],
)
def test_layers_with_gains_are_those_that_were_asked_for(changes, layers):
    agent = build_agent(build_config(changes), 7, 5, 3)
    assert tuple(agent.gains) == layers
    assert {p.shape for p in agent.own_parameters} <= {(3, 5), (3, 64), (3, 192)}
    assert len(agent.own_parameters) == 2 * len(layers)


RATES = [
    ({"method": "fups"}, 0, [1.0]),
    ({"method": "k24", "alpha_lr_factor": 20.0}, 0, [1.0, 20.0]),
    ({"method": "k24", "alpha_lr_factor": 20.0, "lr_factor_ramp": 0.5}, 0, [1.0, 2.0]),
    ({"method": "gains", "own_lr_factor": 10.0, "lr_factor_ramp": 0.5}, 0, [1.0, 1.0]),
    ({"method": "gains", "own_lr_factor": 10.0, "lr_factor_ramp": 0.5}, 250, [1.0, 5.5]),
    ({"method": "gains", "own_lr_factor": 10.0, "lr_factor_ramp": 0.5}, 500, [1.0, 10.0]),
    ({"method": "gains", "own_lr_factor": 10.0, "lr_factor_ramp": 0.5}, 900, [1.0, 10.0]),
    ({"method": "gains", "own_lr_factor": 1.0, "lr_factor_ramp": 0.0}, 900, [1.0]),
    ({"method": "kaleidoscope", "own_lr_factor": 20.0}, 0, [1.0, 20.0]),
    (
        {"method": "k24-gains", "own_lr_factor": 10.0, "alpha_lr_factor": 5.0, "lr_factor_ramp": 0.0},
        0,
        [1.0, 5.0, 10.0],
    ),
]


@pytest.mark.parametrize(("changes", "t_env", "factors"), RATES, ids=str)
def test_what_belongs_to_single_agents_learns_at_a_rate_of_its_own(changes, t_env, factors, tiny_spec):
    learner = build_learner(build_config({"lr": 0.01, "lr_final": None, "t_max": 1000} | changes), tiny_spec)
    learner._set_lr(t_env)
    groups = learner.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.01 * factor for factor in factors])
    trained = [p for module in (learner.agent, learner.mixer) for p in module.parameters() if p.requires_grad]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trained}
    assert sum(len(group["params"]) for group in groups) == len(trained)


def test_gains_go_back_to_the_mean_of_the_team_where_their_gradients_are_noise():
    gain = torch.tensor([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    grad, square = torch.tensor([[0.0, 2.0, 1.0]] * 2), torch.tensor([[4.0, 4.0, 4.0]] * 2)
    shrink_to_mean(gain, grad, square, rate=0.5)
    assert gain.T.tolist() == [[1.5, 2.5], [1.0, 3.0], [1.375, 2.625]]
    shrink_to_mean(gain, torch.zeros(2, 3), square, rate=7.0)  # never beyond the mean
    assert (gain == 2).all()


@pytest.mark.parametrize("method", ["gains24", "k24-gains", "fups"])
def test_gain_shrinkage_moves_gains_alone(method, tiny_spec, random_episodes):
    without, with_it = (
        build_learner(build_config({"method": method, "gain_shrinkage": shrinkage}), tiny_spec)
        for shrinkage in (0.0, 5.0)
    )
    without.update(random_episodes(seed=0), 0)  # the first gradient has one direction
    with_it.load_state_dict(copy.deepcopy(without.state_dict()))
    for learner in (without, with_it):
        learner.update(random_episodes(seed=1), 0)
    before, after = (dict(learner.agent.named_parameters()) for learner in (without, with_it))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == ({"gains"} if method != "fups" else set())


def test_thresholds_start_where_the_setting_says():
    for scale in (5.0, 2.0):
        agent = build_agent(build_config({"method": "kaleidoscope", "threshold_scale": scale}), 7, 5, 3)
        threshold = agent.layers["fc2"].threshold
        assert -2 * scale <= threshold.min() < -1.9 * scale and -1.1 * scale < threshold.max() <= -scale
        fresh = agent.layers["fc2"]._fresh_threshold(torch.tensor([0.0, 1.0]))
        assert fresh.tolist() == [-scale, -2 * scale]
