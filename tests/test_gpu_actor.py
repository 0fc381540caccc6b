"""The GPU's forms of a step: their padding and order on the CPU, their numbers where there is a GPU."""

from types import SimpleNamespace

import pytest
import torch

from k24lab.bench import gpu as bench_gpu
from k24lab.bench.gpu import sparse24_available
from k24lab.errors import ConfigError
from k24lab.inference import freeze as teams, gpu
from k24lab.inference.actor import Actor
from k24lab.inference.team_step import batched, team_step
from k24lab.marl.agent import build_agent

SIZES = [(10, 20, 5), (30, 64, 9), (7, 70, 3)]


@pytest.fixture
def make_team(tiny_config):
    def make(obs=10, hidden=20, n_actions=5, **changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": hidden} | changes)
        return teams.freeze(build_agent(config, obs, n_actions, 3), config, obs, 3, t_env=0)

    return make


@pytest.mark.parametrize("backend", ["cutlass", "cusparselt"])
@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}])
@pytest.mark.parametrize("sizes", SIZES)
def test_both_forms_are_the_team_for_every_padding(make_team, backend, changes, sizes):
    team = make_team(*sizes, **changes)
    layers = gpu.padded_layers(team, backend)
    tile = (32, 64) if backend == "cutlass" else (16, 16)
    for layer in layers.values():
        assert [n % t for n, t in zip(layer.weight.shape[1:], tile, strict=True)] == [0, 0]
    dense = batched({name: (layer.weight, layer.bias) for name, layer in layers.items()})
    forms = dense, gpu.sparse_form(layers, lambda weight: weight)
    actor = Actor(team, "torch")
    width, size = layers["fc1"].weight.shape[2], layers["fc1"].weight.shape[1]
    hidden = [torch.zeros(3, 4, size) for _ in forms]
    for _ in range(3):
        inputs = torch.randn(3, 4, sizes[0])
        x = torch.nn.functional.pad(inputs, (0, width - sizes[0]))
        expected = actor.q_values(inputs)
        for k, form in enumerate(forms):
            q_values, hidden[k] = team_step(form, x, hidden[k])
            torch.testing.assert_close(q_values[..., : sizes[2]], expected, rtol=1e-5, atol=1e-5)
            assert (hidden[k][..., sizes[1] :] == 0).all()


def test_masked_matrices_are_packed_one_by_one_and_dense_ones_never(make_team):
    packed = []
    layers = gpu.padded_layers(make_team(mask_rnn=False), "cutlass")
    gpu.sparse_form(layers, lambda weight: packed.append(weight) or weight)
    assert len(packed) == 4 * 3


def test_absurd_padding_is_refused(make_team):
    with pytest.raises(ConfigError, match=r"a team with 148 weights would be padded to \d+, more than 16 times"):
        gpu.padded_layers(make_team(3, 4, 2), "cutlass")


@pytest.mark.parametrize(("backend", "chosen"), [("cusparselt", 7), ("cutlass", 0)])
def test_cusparselt_searches_its_algorithm_for_the_batch(backend, chosen, monkeypatch):
    seen = []

    def search(packed, dense, **options):
        seen.append((packed, tuple(dense.shape), options))
        return 7

    monkeypatch.setattr(bench_gpu, "_pack", lambda weight, backend: SimpleNamespace(packed=weight, alg_id_cusparselt=0))
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", search, raising=False)
    weight = torch.zeros(32, 64)
    assert bench_gpu.pack_for_gpu.__wrapped__(weight, backend, 13).alg_id_cusparselt == chosen
    assert seen == ([(weight, (64, 16), {"transpose_result": True})] if chosen else [])


@pytest.mark.skipif(sparse24_available()[0], reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error(make_team):
    with pytest.raises(ConfigError, match="no 2:4 measurement here"):
        gpu.GPUActor(make_team(), 4)
    with pytest.raises(ConfigError, match="unknown form 'fast'"):
        gpu.GPUActor(make_team(), 4, form="fast")
    with pytest.raises(ConfigError, match="unknown dtype 'float32'"):
        gpu.GPUActor(make_team(), 4, dtype="float32")


@pytest.mark.gpu
@pytest.mark.skipif(not sparse24_available()[0], reason=sparse24_available()[1])
@pytest.mark.parametrize("form", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}])
def test_gpu_acts_as_the_cpu(make_team, form, changes):
    team = make_team(30, 64, 9, **changes)
    actor, reference = gpu.GPUActor(team, 8, form=form), Actor(team, "torch")
    for _ in range(3):
        inputs = torch.randn(team.n_masks, 8, 30)
        q_values = actor.q_values(inputs.cuda()).float().cpu()
        torch.testing.assert_close(q_values, reference.q_values(inputs), rtol=2e-2, atol=2e-2)
    actor.reset(), reference.reset()
    torch.testing.assert_close(
        actor.q_values(inputs.cuda()).float().cpu(), reference.q_values(inputs), rtol=2e-2, atol=2e-2
    )
