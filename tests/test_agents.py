import pytest
import torch

from k24lab.core.masks import argmax_masks, draw_masks
from k24lab.core.modules import drawn_masks
from k24lab.errors import InputError
from k24lab.lab.config import build_config
from k24lab.marl.agent import LAYERS, build_agent, step, unroll

KINDS = {
    "shared": {"method": "fups"},
    "separate": {"method": "nops"},
    "masked, dense GRU": {"method": "k24", "mask_rnn": False},
    "masked, all": {"method": "k24", "mask_rnn": True},
    "a head each": {"method": "multih"},
    "magnitude masks": {"method": "magnitude24"},
    "thresholds": {"method": "kaleidoscope"},
}
N, T, B, INPUT, H, A = 3, 4, 2, 7, 8, 5


def make_agent(kind, n_agents=N):
    agent = build_agent(build_config(KINDS[kind] | {"hidden_dim": H}), INPUT, A, n_agents).double()
    for layer in agent.masked_layers.values():
        layer.ema_tracker.ema_activation.uniform_(0.5, 2)
    for layer in agent.layers.values():
        layer.DECAY = 0.0  # of magnitude masks: the slow reference asks for the weights many times
    return agent


def draw(agent):
    """Masks by layer, with their straight-through gradient."""
    layers = agent.masked_layers
    if not layers:
        return {}
    return dict(zip(layers, draw_masks(list(layers.values()), 1.0, 3.0, "annealed").masks, strict=True))


def slow_unroll(agent, masks, x, hidden):
    """Every agent, every episode and every time step on its own; torch.nn.GRUCell's formula."""

    def matrix(name, n):
        layer = agent.layers[name]
        if name in masks:
            return layer.weight * masks[name][n], layer.bias
        weight, bias = layer.effective()
        return weight[n if len(weight) > 1 else 0], bias[n if len(bias) > 1 else 0]

    def linear(name, n, v):
        weight, bias = matrix(name, n)
        return weight @ v + bias

    rows = []
    for n in range(x.shape[0]):
        for b in range(x.shape[3]):
            h = hidden[n, :, b]
            for t in range(x.shape[2]):
                v = torch.relu(linear("fc1", n, x[n, :, t, b]))
                (wi, bi), (wh, bh) = matrix("rnn_input", n), matrix("rnn_hidden", n)
                h = torch.gru_cell(v.unsqueeze(0), h.unsqueeze(0), wi, wh, bi, bh).squeeze(0)
                rows.append(linear("fc4", n, torch.relu(linear("fc3", n, torch.relu(linear("fc2", n, h))))))
    return torch.stack(rows).reshape(x.shape[0], x.shape[3], x.shape[2], -1).permute(0, 3, 2, 1)


def random_input(n_agents=N):
    shape = (n_agents, INPUT, T, B)
    return torch.randn(shape, dtype=torch.float64), torch.randn(n_agents, H, B, dtype=torch.float64)


@pytest.mark.parametrize("n_agents", [1, N])
@pytest.mark.parametrize("kind", KINDS)
def test_unroll_equals_the_slow_reference_in_value_and_gradient(kind, n_agents):
    agent = make_agent(kind, n_agents)
    x, hidden = (v.requires_grad_() for v in random_input(n_agents))
    masks = draw(agent)
    wanted = [x, hidden, *agent.parameters()]
    coefficient = torch.randn(n_agents, A, T, B, dtype=torch.float64)

    slow = slow_unroll(agent, masks, x, hidden)
    expected = torch.autograd.grad((slow * coefficient).sum(), wanted, retain_graph=True)
    fast = unroll(agent.weights(masks), x, hidden).q_values
    torch.testing.assert_close(fast, slow)
    found = torch.autograd.grad((fast * coefficient).sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_unroll_equals_repeated_steps(kind):
    agent = make_agent(kind)
    x, hidden = random_input()
    weights = agent.weights(draw(agent))
    whole = unroll(weights, x, hidden).q_values
    for t in range(T):
        q_values, hidden = step(weights, x[:, :, t], hidden)
        torch.testing.assert_close(q_values, whole[:, :, t])


def test_recurrent_part_equals_torchs_gru_cell():
    agent = make_agent("shared")
    x, hidden = random_input()
    cell = torch.nn.GRUCell(H, H, dtype=torch.float64)
    with torch.no_grad():
        for name, suffix in (("rnn_input", "ih"), ("rnn_hidden", "hh")):
            getattr(cell, f"weight_{suffix}").copy_(agent.layers[name].weight[0])
            getattr(cell, f"bias_{suffix}").copy_(agent.layers[name].bias[0])
    weights = agent.weights()
    rows, before = x[:, :, 0].transpose(1, 2), hidden.transpose(1, 2)
    features = torch.relu(rows @ weights["fc1"].weight[0].T + weights["fc1"].bias[0])
    expected = cell(features.flatten(0, 1), before.flatten(0, 1)).reshape(N, B, H)
    torch.testing.assert_close(step(weights, x[:, :, 0], hidden)[1].transpose(1, 2), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_all_layers_are_reported(kind):
    agent = make_agent(kind)
    x, hidden = random_input()
    weights = agent.weights(draw(agent))
    unrolled = unroll(weights, x, hidden)
    assert set(unrolled.inputs) == set(LAYERS)
    for name, value in unrolled.inputs.items():
        assert value.shape == (N, weights[name].weight.shape[-1], T, B)
    assert torch.equal(unrolled.inputs["fc1"], x)
    assert torch.equal(unrolled.inputs["fc2"], unrolled.inputs["rnn_hidden"])
    head = weights["fc4"]
    by_hand = torch.einsum("nitb,kai->natb", unrolled.inputs["fc4"], head.weight[:1]) + head.bias[0][:, None, None]
    torch.testing.assert_close(unrolled.q_values[0], by_hand[0])  # agent 0 has the first, or the only matrix


def test_separate_networks_are_independent():
    agent = make_agent("separate")
    x, hidden = random_input()
    unroll(agent.weights(), x, hidden).q_values[1].sum().backward()
    for name, parameter in agent.named_parameters():
        assert not parameter.grad[[0, 2]].any(), name
        assert parameter.grad[1].any() or name.startswith("layers.fc4.bias"), name
    values = torch.stack([p.flatten(1)[:, 0] for p in agent.parameters()])
    assert (values[:, 0] != values[:, 1]).all()  # and start from different numbers


@pytest.mark.parametrize("kind", ["masked, dense GRU", "masked, all"])
def test_agents_share_weights_and_differ_by_their_masks(kind):
    agent = make_agent(kind)
    x, hidden = random_input()
    same = x[:1].expand(N, -1, -1, -1)
    layers = agent.masked_layers
    masks = dict(zip(layers, argmax_masks(list(layers.values())), strict=True))
    q = unroll(agent.weights(masks), same, hidden[:1].expand(N, -1, -1)).q_values
    assert not torch.allclose(q[0], q[1])
    one = {name: mask[:1].expand(N, -1, -1) for name, mask in masks.items()}
    q = unroll(agent.weights(one), same, hidden[:1].expand(N, -1, -1)).q_values
    torch.testing.assert_close(q[0], q[2])
    expected = LAYERS if kind == "masked, all" else ("fc1", "fc2", "fc3", "fc4")
    assert tuple(layers) == expected


def test_a_shared_network_treats_all_agents_alike():
    agent = make_agent("shared")
    x, hidden = random_input()
    order = [2, 0, 1]
    q = unroll(agent.weights(), x, hidden).q_values
    torch.testing.assert_close(unroll(agent.weights(), x[order], hidden[order]).q_values, q[order])


def test_sizes_are_those_of_the_design_document():
    shared, separate, masked = (
        build_agent(build_config({"method": method}), 21, 5, 3) for method in ("fups", "nops", "k24")
    )
    weights = {name: layer.weight[0].numel() for name, layer in shared.layers.items()}
    assert weights == {"fc1": 1344, "rnn_input": 12288, "rnn_hidden": 12288, "fc2": 4096, "fc3": 4096, "fc4": 320}
    total, gru = sum(weights.values()), weights["rnn_input"] + weights["rnn_hidden"]
    assert gru / total == pytest.approx(0.71, abs=0.005)
    assert total / (gru + (total - gru) / 2) == pytest.approx(1.17, abs=0.005)  # the most that fc1-fc4 can gain
    size = {
        agent: sum(p.numel() for n, p in agent.named_parameters() if "alpha" not in n)
        for agent in (shared, separate, masked)
    }
    assert size[masked] == size[shared] == size[separate] / 3
    assert sum(p.numel() for n, p in masked.named_parameters() if "alpha" in n) == 3 * total


def test_heads_are_all_that_multih_does_not_share():
    layers = build_agent(build_config({"method": "multih"}), 21, 5, 3).layers
    assert {name: len(layer.weight) for name, layer in layers.items()} == dict.fromkeys(LAYERS, 1) | {"fc4": 3}


@pytest.mark.parametrize("mask_rnn", [True, False])
def test_magnitude24_is_one_2_4_network_for_all(mask_rnn):
    config = build_config({"method": "magnitude24", "mask_rnn": mask_rnn, "hidden_dim": 8})
    for name, layer in build_agent(config, 21, 5, 3).weights().items():
        kept = (
            torch.nn.functional.pad(layer.weight != 0, (0, -layer.weight.shape[-1] % 4)).unflatten(-1, (-1, 4)).sum(-1)
        )
        assert len(layer.weight) == 1
        masked = mask_rnn or name not in ("rnn_input", "rnn_hidden")
        assert (kept[..., : layer.weight.shape[-1] // 4] == (2 if masked else 4)).all()


def test_hidden_state_starts_at_zero_in_the_dtype_of_the_network():
    for kind in KINDS:
        hidden = make_agent(kind).initial_hidden(N, B)
        assert hidden.shape == (N, H, B) and hidden.dtype == torch.float64 and not hidden.any()


@pytest.mark.parametrize("kind", [*KINDS, "gains"])
def test_an_agent_called_as_a_module_does_one_step_of_all_agents(kind):
    if kind == "gains":
        agent = build_agent(build_config({"method": "gains", "hidden_dim": H}), INPUT, A, N).double()
    else:
        agent = make_agent(kind)
    agent.eval()
    obs, hidden = torch.randn(N, B, INPUT).double(), torch.randn(N, B, H).double()
    q_values, after = agent(obs, hidden)
    with torch.no_grad():
        weights = agent.argmax_weights()
        if kind in ("shared", "magnitude masks"):
            x, h = obs.flatten(0, 1).unsqueeze(0), hidden.flatten(0, 1).unsqueeze(0)
        else:
            x, h = obs, hidden
        expected = step(weights, x.mT.contiguous(), h.mT.contiguous())
    torch.testing.assert_close(q_values, expected[0].mT.reshape(N, B, A))
    torch.testing.assert_close(after, expected[1].mT.reshape(N, B, H))
    torch.testing.assert_close(agent(obs)[0], agent(obs, torch.zeros_like(hidden))[0])
    assert q_values.requires_grad


def test_an_agent_in_training_draws_masks_and_uses_those_of_a_block():
    agent, obs = make_agent("masked, all"), torch.randn(N, B, INPUT).double()
    assert not torch.equal(agent(obs)[0], agent(obs)[0])
    with drawn_masks(agent) as drawn:
        q_values, _ = agent(obs)
        assert torch.equal(agent(obs)[0], q_values)
    weights = agent.weights(dict(zip(agent.masked_layers, drawn.masks, strict=True)))
    expected = step(weights, obs.mT.contiguous(), torch.zeros(N, H, B).double())[0]
    torch.testing.assert_close(q_values, expected.mT)


def test_observations_of_another_number_of_agents_are_an_error():
    with pytest.raises(InputError, match=r"obs of shape \(2, 2, 7\), expected \(3, B, I\)"):
        make_agent("masked, all")(torch.zeros(2, B, INPUT).double())
