"""The two implementations of a step on a GPU: padding and order on the CPU, numbers where there is a GPU."""

from types import SimpleNamespace

import pytest
import torch
from gains import WITH_GAINS, spread_gains

from k24lab.errors import ConfigError
from k24lab.inference import freeze as teams, gpu
from k24lab.inference.actor import Actor, batched, team_step
from k24lab.marl.agent import build_agent

SIZES = [(10, 20, 5), (30, 64, 9), (7, 70, 3)]
AVAILABLE, REASON = gpu.sparse24_available()


@pytest.fixture
def make_team(tiny_config):
    def make(obs=10, hidden=20, n_actions=5, **changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": hidden} | changes)
        return teams.freeze(spread_gains(build_agent(config, obs, n_actions, 3)), config, obs, 3, t_env=0)

    return make


@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}, *WITH_GAINS])
@pytest.mark.parametrize("sizes", SIZES)
def test_both_implementations_are_the_team_for_every_padding(make_team, changes, sizes):
    team = make_team(*sizes, **changes)
    layers = gpu.padded_layers(team)
    for weight, _ in layers.values():
        assert [n % 16 for n in weight.shape[1:]] == [0, 0]
    masked = [name for name, layer in team.layers.items() if layer.patterns is not None]
    gains = gpu.padded_gains(team)
    each, grouped = (gpu.sparse_calls(layers, masked, lambda weight: weight, gains, g) for g in (False, True))
    implementations = batched(layers, gains), each, grouped
    actor = Actor(team, "torch")
    _, size, width = layers["fc1"][0].shape
    hidden = [torch.zeros(3, 4, size) for _ in implementations]
    for _ in range(3):
        inputs = torch.randn(3, 4, sizes[0])
        x = torch.nn.functional.pad(inputs, (0, width - sizes[0]))
        expected = actor.q_values(inputs)
        for k, implementation in enumerate(implementations):
            q_values, hidden[k] = team_step(implementation, x, hidden[k])
            torch.testing.assert_close(q_values[..., : sizes[2]], expected, rtol=1e-5, atol=1e-5)
            assert (hidden[k][..., sizes[1] :] == 0).all()


def test_matrices_for_cutlass_are_padded_further_and_compute_the_same(make_team):
    team = make_team(30, 20, 9)
    layers, gains = gpu.moved(team, "cpu", torch.float64, gpu.CUTLASS_TILE)
    assert {n % 64 for weight, _ in layers.values() for n in weight.shape[1:]} == {0} and gains == {}
    x = torch.randn(3, 4, 30)
    padded = torch.nn.functional.pad(x, (0, 34)).double()
    q_values, _ = team_step(batched(layers), padded, padded.new_zeros(3, 4, 64))
    torch.testing.assert_close(q_values[..., :9].float(), Actor(team, "torch").q_values(x), rtol=1e-5, atol=1e-5)


def test_masked_matrices_are_packed_one_by_one_and_dense_ones_never(make_team):
    packed = []
    layers = gpu.padded_layers(make_team(mask_rnn=False))
    gpu.sparse_calls(layers, ["fc1", "fc2", "fc3", "fc4"], lambda weight: packed.append(weight) or weight)
    assert len(packed) == 4 * 3
    packed.clear()
    layers = gpu.padded_layers(make_team(mask_rnn=False))
    gpu.sparse_calls(layers, ["fc2"], lambda weight: packed.append(weight) or weight, grouped=True)
    assert [tuple(weight.shape) for weight in packed] == [(3 * 32, 32)]


def test_cusparselt_searches_its_algorithm_once_for_each_shape_and_batch(monkeypatch):
    seen = []

    def search(packed, dense, **options):
        seen.append((packed, tuple(dense.shape), options))
        return 7

    pack = SimpleNamespace(from_dense=lambda weight: SimpleNamespace(packed=weight, alg_id_cusparselt=0))
    monkeypatch.setattr(gpu, "SparseSemiStructuredTensorCUSPARSELT", pack)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", search, raising=False)
    monkeypatch.setattr(gpu, "_algorithms", {})
    weight = torch.zeros(32, 64)
    assert gpu.pack_for_gpu.__wrapped__(weight, 13).alg_id_cusparselt == 7
    assert seen == [(weight, (64, 16), {"transpose_result": True})]
    for other, batch in ((weight + 1, 16), (weight, 17), (torch.zeros(64, 64), 13)):
        assert gpu.pack_for_gpu.__wrapped__(other, batch).alg_id_cusparselt == 7
    assert [shape for _, shape, _ in seen] == [(64, 16), (64, 24), (64, 16)]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU that is the CPU: a graph is its calls, 2:4 matrices stay dense and their calls are the faster ones."""
    monkeypatch.setattr(gpu, "sparse24_available", lambda: (True, "pretended"))
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "pack_for_gpu", lambda weight, batch: weight)
    monkeypatch.setattr(gpu, "capture", lambda call: (call(), call)[1])
    times = iter([3.0, 2.0] * gpu.TRIALS)  # dense, sparse
    monkeypatch.setattr(gpu, "gpu_time", lambda call: (call(), next(times))[1])


@pytest.mark.parametrize("implementation", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("changes", [{}, {"method": "magnitude24"}, *WITH_GAINS])
def test_an_actor_keeps_hidden_states_pads_and_forgets(pretended_gpu, make_team, implementation, changes):
    team = make_team(30, 64, 9, **changes)
    actor, reference = gpu.GPUActor(team, 8, "bfloat16", implementation), Actor(team, "torch")
    assert actor.implementation == ("sparse" if implementation == "auto" else implementation)
    for _ in range(2):
        for _ in range(3):
            inputs = torch.randn(team.n_masks, 8, 30)
            found = actor.q_values(inputs).float()
            torch.testing.assert_close(found, reference.q_values(inputs), rtol=5e-2, atol=5e-2)
        actor.reset(), reference.reset()
    with pytest.raises(ValueError, match=r"inputs \(3, 7, 30\), expected \(\d, 8, 30\): masks, games and inputs"):
        actor.q_values(torch.randn(3, 7, 30))


@pytest.mark.skipif(AVAILABLE, reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error(make_team):
    with pytest.raises(ConfigError, match="no 2:4 on a GPU here"):
        gpu.GPUActor(make_team(), 4)
    with pytest.raises(ConfigError, match="unknown implementation 'fast'"):
        gpu.GPUActor(make_team(), 4, implementation="fast")
    with pytest.raises(ConfigError, match="unknown dtype 'float32'"):
        gpu.GPUActor(make_team(), 4, dtype="float32")


@pytest.mark.gpu
@pytest.mark.skipif(not AVAILABLE, reason=REASON)
@pytest.mark.parametrize("implementation", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}, *WITH_GAINS])
def test_gpu_acts_as_the_cpu(make_team, implementation, changes):
    team = make_team(30, 64, 9, **changes)
    actor, reference = gpu.GPUActor(team, 8, implementation=implementation), Actor(team, "torch")
    for _ in range(3):
        inputs = torch.randn(team.n_masks, 8, 30)
        q_values = actor.q_values(inputs.cuda()).float().cpu()
        torch.testing.assert_close(q_values, reference.q_values(inputs), rtol=2e-2, atol=2e-2)
    actor.reset(), reference.reset()
    torch.testing.assert_close(
        actor.q_values(inputs.cuda()).float().cpu(), reference.q_values(inputs), rtol=2e-2, atol=2e-2
    )
