"""Acting in one call: the same numbers as the network's own step, for every size, batch and build."""

import inspect

import pytest
import torch
from test_kernels import build, needs_kernels, random_24  # noqa: F401
from torch.nn import functional as F

from k24lab.core.masks import argmax_masks
from k24lab.marl.agent import LAYERS, build_agent, step
from k24lab.ops import acting

pytestmark = needs_kernels
SIZES = [(1, 1), (8, 4), (7, 18), (33, 30), (64, 64), (24, 131)]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("rows", "inputs"), SIZES)
def test_linear_is_that_of_torch(build, rows, inputs, sparse):  # noqa: F811
    weight, bias = random_24(3, rows, inputs), torch.randn(3, rows)
    linear = acting.PackedLinear(weight, bias, sparse=sparse)
    for batch in range(1, 10):
        x = torch.randn(3, batch, inputs)
        expected = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        y = linear(x)
        torch.testing.assert_close(y[..., :rows], expected, rtol=1e-5, atol=1e-5)
        assert (y[..., rows:] == 0).all()
        torch.testing.assert_close(linear(x, relu=True)[..., :rows], expected.relu(), rtol=1e-5, atol=1e-5)


def test_one_matrix_and_one_bias_serve_all_networks(build):  # noqa: F811
    weight, bias, x = random_24(1, 9, 12), torch.randn(1, 9), torch.randn(4, 2, 12)
    y = acting.PackedLinear(weight, bias)(x)
    torch.testing.assert_close(y[..., :9], F.linear(x, weight[0], bias[0]), rtol=1e-5, atol=1e-5)


def test_the_kernel_writes_to_no_memory_that_does_not_fit(build):  # noqa: F811
    linear = acting.PackedLinear(random_24(2, 16, 12), torch.zeros(1, 16))
    x, out = torch.randn(2, 3, 12), torch.empty(2, 3, 16)
    first = linear(x, out=out).clone()
    call = inspect.unwrap(acting.PackedLinear.__call__)  # as users have it, without the tests' checks of annotations
    for bad_x, bad_out in [
        (x, torch.empty(2, 2, 16)),
        (x, torch.empty(2, 3, 16, dtype=torch.float16)),
        (x, torch.empty(2, 16, 3).mT),
        (x[:, :2], out),  # fitted the last inputs, not these
        (torch.randn(2, 4, 12), out),
        (torch.randn(3, 3, 12), None),
        (x.double(), out),
        (torch.randn(2, 3, 16), out),
    ]:
        with pytest.raises(ValueError, match=r"does not fit|expected"):
            call(linear, bad_x, out=bad_out)
    assert linear(2 * x, out=out) is out
    torch.testing.assert_close(out, 2 * first)


def test_a_group_that_keeps_three_is_named(build):  # noqa: F811
    weight = random_24(3, 6, 22)
    weight[1, 4, 8:11] = 1.0
    with pytest.raises(acting.NotSparse, match="network 1, row 4, group 2: more than two") as error:
        acting.PackedLinear(weight, torch.zeros(1, 6), gates=3)
    assert error.value.place == (1, 4, 2)


@pytest.mark.parametrize(("method", "changes"), [("k24", {}), ("k24", {"mask_rnn": False}), ("fups", {}), ("nops", {})])
@pytest.mark.parametrize(("n_agents", "hidden", "obs", "n_actions"), [(3, 12, 18, 5), (2, 64, 7, 9)])
def test_a_team_acts_as_its_network_does(build, tiny_config, method, changes, n_agents, hidden, obs, n_actions):  # noqa: F811
    config = tiny_config(method=method, hidden_dim=hidden, **changes)
    agent = build_agent(config, obs, n_actions, n_agents)
    masks = dict(zip(agent.masked_layers, argmax_masks(list(agent.masked_layers.values())), strict=True))
    with torch.inference_mode():
        weights = agent.weights(masks)
        layers = {
            name: acting.PackedLinear(
                layer.weight, layer.bias, acting.GATES.get(name, 1), sparse=name in agent.masked_layers
            )
            for name, layer in weights.items()
        }
        team = acting.TeamStep(layers, n_actions)
        for batch in (1, 2, 3, 6):
            hidden_state, reference = team.initial_hidden(n_agents, batch), agent.initial_hidden(n_agents, batch)
            for _ in range(4):
                x = torch.randn(n_agents, batch, obs)
                q_values = team(x, hidden_state)
                expected, reference = step(weights, x.mT.contiguous(), reference)
                torch.testing.assert_close(q_values, expected.mT, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(hidden_state[..., :hidden], reference.mT, rtol=1e-5, atol=1e-5)
                assert (hidden_state[..., hidden:] == 0).all()
    assert set(layers) == set(LAYERS)
