"""Ordinary networks with masks, masked GRUs, and one agent's network out of a masked one."""

import copy

import jaxtyping
import pytest
import torch
from torch import nn

from k24lab.core.config import MaskConfig
from k24lab.core.convert import convert, extract
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.modules import diversity_loss, drawn_masks, freeze_masks, masked_layers
from k24lab.core.recurrent import MaskedGRU, MaskedGRUCell
from k24lab.errors import InputError

M = 3


class Recurrent(nn.Module):
    """What a user might have: layers of all three kinds, inside other modules, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.rnn = nn.GRU(8, 6, num_layers=2, batch_first=True)
        self.cell = nn.GRUCell(6, 6)
        self.heads = nn.ModuleDict({"policy": nn.Linear(6, 4), "value": nn.Linear(6, 1, bias=False)})
        self.again = self.heads["policy"]

    def forward(self, x, h=None):
        y, h = self.rnn(self.encoder(x), h)
        y = self.cell(y[..., -1, :], y[..., 0, :])
        return self.heads["policy"](y) + self.again(y.tanh()), self.heads["value"](y), h


@pytest.fixture
def all_ones(monkeypatch):
    """Masks that keep everything."""
    monkeypatch.setattr(SemiStructuredLinear24, "mask", lambda self: torch.ones_like(self.hetero_alpha))


# --- conversion ------------------------------------------------------------------------------------------------


def test_with_masks_that_keep_everything_a_converted_network_is_the_network_itself(all_ones):
    network, x, h = Recurrent(), torch.randn(4, 7, 5), torch.randn(2, 4, 6)
    team = convert(network, M)
    for out, expected in zip(team(x.expand(M, -1, -1, -1), h.expand(M, -1, -1, -1)), network(x, h), strict=True):
        torch.testing.assert_close(out, expected.expand(M, *expected.shape))


def test_converted_layers_hold_the_weights_and_the_network_stays_as_it_was():
    network = Recurrent().eval()
    before = copy.deepcopy(network.state_dict())
    team = convert(network, M, config=MaskConfig(hetero_init_scale=0.5))
    assert list(masked_layers(team)) == [
        "encoder.0",
        *(f"rnn.{side}_gates.{k}" for side in ("input", "hidden") for k in range(2)),
        "cell.input_gates",
        "cell.hidden_gates",
        "heads.policy",
        "heads.value",
    ]
    assert team.again is team.heads["policy"] and not team.heads["value"].has_bias and not team.training
    assert torch.equal(team.rnn.hidden_gates[1].weight, network.rnn.weight_hh_l1)
    assert torch.equal(team.rnn.input_gates[0].bias, network.rnn.bias_ih_l0)
    assert team.heads["value"].config.hetero_init_scale == 0.5 and team.cell.hidden_gates.n_masks == M
    with torch.no_grad():
        for parameter in team.parameters():
            parameter.zero_()
    assert type(network.rnn) is nn.GRU and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_tied_weights_stay_tied_and_dtypes_and_frozen_parameters_stay():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    network[1].weight = network[0].weight
    network[0].bias.requires_grad_(False)
    team = convert(network, 2)
    assert team[1].weight is team[0].weight and not team[0].bias.requires_grad
    assert team(torch.randn(2, 3, 4, dtype=torch.float64)).dtype == team[0].hetero_alpha.dtype == torch.float64


def test_skipped_submodules_stay_dense_with_all_that_is_in_them():
    team = convert(Recurrent(), M, skip=("heads", "rnn"))
    assert list(masked_layers(team)) == ["encoder.0", "cell.input_gates", "cell.hidden_gates"]
    assert type(team.heads["value"]) is nn.Linear and type(team.again) is nn.Linear and type(team.rnn) is nn.GRU
    assert list(masked_layers(convert(Recurrent(), M, skip="heads"))) == [*masked_layers(convert(Recurrent(), M))][:7]
    for skip in (("head",), "head"):
        with pytest.raises(ValueError, match=r"unknown submodule 'head'; did you mean 'heads'"):
            convert(Recurrent(), M, skip=skip)


def test_a_single_layer_is_converted_and_extracted_as_a_whole():
    layer = nn.Linear(8, 4)
    masked = convert(layer, M).eval()
    assert isinstance(masked, SemiStructuredLinear24)
    assert not extract(masked.double(), 1).training and extract(masked.train(), 1).training
    one = extract(masked.float(), 1)
    assert extract(masked.double(), 1).weight.dtype == torch.float64
    assert type(one) is nn.Linear and torch.equal(one.weight, layer.weight * masked.float().argmax_mask()[1])


@pytest.mark.parametrize(
    ("rnn", "expected"),
    [
        (nn.GRU(4, 4, bidirectional=True), r"a GRU with bidirectional = True cannot be converted; skip=\('1',\)"),
        (nn.GRU(4, 4, num_layers=2, dropout=0.5), r"a GRU with dropout = 0.5 cannot"),
    ],
)
def test_a_gru_that_cannot_be_masked_is_an_error_that_names_it(rnn, expected):
    with pytest.raises(InputError, match=expected):
        convert(nn.Sequential(nn.Linear(4, 4), rnn), M)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last")
def test_a_gru_of_one_layer_has_no_use_for_dropout_and_is_converted():
    assert isinstance(convert(nn.GRU(4, 4, dropout=0.5), M), MaskedGRU)


def test_batch_normalisation_is_an_error_that_says_what_to_use_unless_it_is_skipped():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4)))
    with pytest.raises(InputError, match=r"BatchNorm1d '1\.0' would .* use nn\.LayerNorm; skip=\('1\.0',\) leaves"):
        convert(network, M)
    assert type(convert(network, M, skip="1")[1][0]) is nn.BatchNorm1d
    layer_norm = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout())
    assert convert(layer_norm, M)(torch.randn(M, 5, 4)).shape == (M, 5, 4)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_that_would_be_lost_are_an_error_unless_the_layer_is_skipped(register):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    getattr(network[1], register)(lambda *_: None)
    with pytest.raises(InputError, match=r"Linear '1' has hooks, which .* would not have: .*; skip=\('1',\) leaves it"):
        convert(network, M)
    assert type(convert(network, M, skip="1")[1]) is nn.Linear


def test_nothing_to_convert_and_no_masks_are_errors():
    with pytest.raises(InputError, match=r"Conv2d has no nn\.Linear, nn\.GRU or nn\.GRUCell to convert"):
        convert(nn.Conv2d(1, 1, 1), M)


@pytest.mark.parametrize("n_masks", [0, -1, True, 2.5, "3"])
@pytest.mark.parametrize("network", [nn.Linear(3, 2), nn.GRU(3, 2)], ids=["linear", "gru"])
def test_a_number_of_masks_that_is_no_whole_number_is_an_error(network, n_masks, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a user
    with pytest.raises(InputError, match=rf"n_masks = {n_masks!r} must be a whole number, at least 1"):
        convert(network, n_masks)


# --- masked GRUs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_each_mask_of_a_gru_is_torchs_gru_with_masked_weights(bias, batch_first, layers):
    rnn = MaskedGRU(5, 6, M, layers, bias, batch_first).eval()
    x, h = torch.randn(M, 4, 7, 5, requires_grad=True), torch.randn(M, layers, 4 if batch_first else 7, 6)
    y, last = rnn(x, h)
    (y.square().sum() + last.sum()).backward()
    got, x.grad = x.grad, None
    for m in range(M):
        one = extract(rnn, m)
        expected, state = one(x[m], h[m])
        torch.testing.assert_close(y[m], expected)
        torch.testing.assert_close(last[m], state)
        (expected.square().sum() + state.sum()).backward()
        assert sum(weight.count_nonzero() for weight in (one.weight_hh_l0,)) == 18 * 4
    torch.testing.assert_close(got, x.grad)
    assert y.shape == (M, 4, 7, 6) and last.shape == h.shape


def test_grus_have_a_bias_unless_told_otherwise():
    assert MaskedGRU(5, 6, M).hidden_gates[0].has_bias and MaskedGRUCell(5, 6, M).hidden_gates.has_bias


def test_a_gru_without_batch_or_first_state_starts_at_zero_as_torchs_does():
    rnn = MaskedGRU(5, 6, M, batch_first=True).eval()
    x = torch.randn(M, 7, 5)
    y, last = rnn(x)
    assert y.shape == (M, 7, 6) and last.shape == (M, 1, 6)
    for m in range(M):
        torch.testing.assert_close(y[m], extract(rnn, m)(x[m])[0])
    torch.testing.assert_close(rnn(x, torch.zeros(M, 1, 6))[0], y)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_each_mask_of_a_cell_is_torchs_cell_with_masked_weights(batch):
    cell = MaskedGRUCell(5, 6, M).eval()
    x, h = torch.randn(M, *batch, 5), torch.randn(M, *batch, 6)
    for m in range(M):
        torch.testing.assert_close(cell(x, h)[m], extract(cell, m)(x[m], h[m]))
        torch.testing.assert_close(cell(x)[m], extract(cell, m)(x[m]))


def test_in_training_a_gru_and_its_unrolled_cell_agree_in_a_block_of_one_draw():
    cell = MaskedGRUCell(5, 6, M)
    rnn = MaskedGRU(5, 6, M)
    rnn.input_gates[0], rnn.hidden_gates[0] = cell.input_gates, cell.hidden_gates
    x, h = torch.randn(M, 7, 4, 5), torch.zeros(M, 4, 6)
    with drawn_masks(cell):
        y = rnn(x)[0]
        states = []
        for t in range(7):
            h = cell(x[:, t], h)
            states.append(h)
        torch.testing.assert_close(y, torch.stack(states, dim=1))
        ours = torch.autograd.grad(y.square().sum(), list(cell.parameters()), retain_graph=True)
        theirs = torch.autograd.grad(torch.stack(states, dim=1).square().sum(), list(cell.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_gru_in_training_draws_masks_and_moves_running_means():
    rnn, x = MaskedGRU(5, 6, M), torch.randn(M, 7, 4, 5)
    first, second = rnn(x)[0], rnn(x)[0]
    assert not torch.equal(first, second)
    ema = rnn.input_gates[0].ema_tracker.ema_activation
    torch.testing.assert_close(ema, x.abs().mean(dim=(1, 2)))
    expected = 0.99 * first.detach().abs().mean(dim=(1, 2)) + 0.01 * second.detach().abs().mean(dim=(1, 2))
    torch.testing.assert_close(rnn.hidden_gates[0].ema_tracker.ema_activation, expected)
    (second.square().sum() + diversity_loss(rnn)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in rnn.parameters())


@pytest.mark.parametrize(
    ("x", "h", "expected"),
    [
        ((2, 7, 4, 5), None, r"x of shape \(2, 7, 4, 5\), expected \(3, T, B, 5\), or \(3, T, 5\) without a batch"),
        ((3, 7, 4, 6), None, r"x of shape \(3, 7, 4, 6\), expected"),
        ((3, 0, 4, 5), None, r"x of shape \(3, 0, 4, 5\), expected"),
        ((3, 5), None, r"x of shape \(3, 5\), expected"),
        ((3, 7, 4, 5), (3, 4, 6), r"h of shape \(3, 4, 6\), expected \(3, 1, 4, 6\)"),
        ((3, 7, 5), (3, 1, 4, 6), r"h of shape \(3, 1, 4, 6\), expected \(3, 1, 6\)"),
    ],
)
def test_shapes_that_do_not_fit_a_gru_are_errors_that_name_the_sizes(x, h, expected):
    with pytest.raises(InputError, match=expected):
        MaskedGRU(5, 6, M)(torch.zeros(x), None if h is None else torch.zeros(h))


def test_a_state_that_does_not_fit_a_cell_and_no_layers_are_errors():
    with pytest.raises(InputError, match=r"h of shape \(3, 6\), expected \(3, 4, 6\)"):
        MaskedGRUCell(5, 6, M)(torch.zeros(3, 4, 5), torch.zeros(3, 6))
    with pytest.raises(InputError, match=r"num_layers = 0 must be at least 1"):
        MaskedGRU(5, 6, M, 0)


# --- what torch does with modules ------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_autocast_trains_a_converted_network(training):
    team = convert(Recurrent(), M).train(training)
    with torch.autocast("cpu", torch.bfloat16), drawn_masks(team):
        policy, value, _ = team(torch.randn(M, 4, 7, 5))
    assert policy.dtype == value.dtype == torch.bfloat16
    (policy.float().square().sum() + value.float().sum()).backward()
    for parameter in team.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all() and parameter.grad.any()


def test_bfloat16_parameters_train():
    team = convert(Recurrent().bfloat16(), M)
    policy, value, _ = team(torch.randn(M, 4, 7, 5, dtype=torch.bfloat16))
    (policy.float().square().sum() + value.float().sum()).backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in team.parameters())


def test_state_dicts_and_copies_carry_a_converted_network():
    team, x = convert(Recurrent(), M), torch.randn(M, 4, 7, 5)
    freeze_masks(team.encoder)
    team(x)
    other = convert(Recurrent(), M)
    other.load_state_dict(team.state_dict())
    for twin in (other, copy.deepcopy(team)):
        for a, b in zip(twin.eval()(x), team.eval()(x), strict=True):
            assert torch.equal(a, b)
    assert not copy.deepcopy(team).encoder[0].learns_masks


def test_a_transformer_uses_its_masks_in_inference_too():
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    for network in (block, nn.TransformerEncoder(block, 2)):
        team, x = convert(network, 1).eval(), torch.randn(3, 5, 8)
        masked = team(x)  # with gradients torch never takes its fast path
        padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5])
        with torch.no_grad():
            torch.testing.assert_close(team(x), masked)
            assert not torch.allclose(network.eval()(x), masked, atol=1e-2)
            torch.testing.assert_close(team(x, src_key_padding_mask=padding)[0], masked[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_converted_network_moves_to_the_gpu_trains_there_and_comes_back():
    team, x = convert(Recurrent(), M).eval(), torch.randn(M, 4, 7, 5)
    expected = [tensor.detach() for tensor in team(x)]
    team = team.cuda()
    for a, b in zip(team(x.cuda()), expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)
    team.train()
    optimizer = torch.optim.Adam(team.parameters(), fused=True)
    with torch.autocast("cuda", torch.bfloat16), drawn_masks(team, torch.Generator("cuda").manual_seed(0)):
        policy, value, _ = team(x.cuda())
        loss = policy.float().square().mean() + value.float().mean() + diversity_loss(team)
    loss.backward()
    optimizer.step()
    assert all(p.is_cuda and p.grad.any() for p in team.parameters())
    index = torch.tensor([0, 2, 1, 0], device="cuda")
    rows = torch.randn(4, 5, device="cuda")
    layer = team.encoder[0].eval()
    with torch.no_grad():
        mixed = layer(rows, index)
        torch.testing.assert_close(mixed.cpu(), layer.cpu()(rows.cpu(), index.cpu()), rtol=1e-3, atol=1e-3)
    team = team.cpu().eval()
    assert all(torch.isfinite(tensor).all() for tensor in team(x))
