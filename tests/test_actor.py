"""Acting with a frozen team on the CPU: every backend, for any number of games."""

import inspect
import re

import pytest
import torch
from gains import WITH_GAINS, spread_gains
from test_kernels import build, needs_kernels  # noqa: F401

from k24lab.errors import ConfigError
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import freeze
from k24lab.marl.agent import build_agent
from k24lab.ops import library as kernels


@pytest.fixture
def make_team(tiny_config):
    def make(n=3, **changes):
        config = tiny_config(**{"method": "k24", "hidden_dim": 16} | changes)
        return freeze(spread_gains(build_agent(config, 10, 5, n)), config, 10, n, t_env=0)

    return make


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_inputs_that_do_not_fit_are_refused(make_team, backend):
    actor = Actor(make_team(), backend)
    for inputs, said in (
        (torch.randn(3, 2, 11), r"inputs \(3, 2, 11\) in float32 on cpu, expected \[3, games, 10\] in float32"),
        (torch.randn(3, 2, 10).double(), "in float64 on cpu, expected"),
        (torch.randn(4, 2, 10), r"inputs \(4, 2, 10\)"),
        (torch.randn(1, 2, 10), r"inputs \(1, 2, 10\)"),
        (torch.randn(3, 2, 10, device="meta"), "on meta, expected"),
    ):
        with pytest.raises(ValueError, match=said):
            actor.q_values(inputs)
        with pytest.raises(ValueError, match=said):
            actor.act(inputs.mT, actor.initial_hidden(3, 2))
    actor.q_values(torch.randn(3, 2, 10))
    with pytest.raises(ValueError, match=r"inputs for 5 games, the last step had 2: reset\(\) first"):
        actor.q_values(torch.randn(3, 5, 10))
    actor.reset()
    assert actor.q_values(torch.randn(3, 5, 10)).shape == (3, 5, 5)


def test_available_actions_that_do_not_fit_are_refused_before_the_step(make_team):
    team = make_team()
    actor, untouched = Actor(team), Actor(team)
    actions = inspect.unwrap(Actor.actions)  # as users have it, without the tests' checks of annotations
    inputs, available = torch.randn(3, 2, 10), torch.ones(3, 2, 5, dtype=torch.bool)
    for k in range(2):
        for wrong, found in (
            (available.float(), "(3, 2, 5) in float32"),
            (available.transpose(0, 1), "(2, 3, 5) in bool"),
            (available[:1], "(1, 2, 5) in bool"),
            (available[..., :4], "(3, 2, 4) in bool"),
        ):
            with pytest.raises(ValueError, match=re.escape(f"avail_actions {found}, expected [3, 2, 5] in bool")):
                actions(actor, inputs, wrong)
        assert torch.equal(actions(actor, inputs, available), untouched.q_values(inputs).argmax(-1)), k
    with pytest.raises(ValueError, match=r"^inputs \(2, 3, 10\)"):
        actions(actor, inputs.transpose(0, 1), available.transpose(0, 1))
    actor.reset()
    assert actions(actor, inputs[:, :1], available[:, :1]).shape == (3, 1)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, {"method": "magnitude24"}, {"mask_rnn": False}, *WITH_GAINS])
@pytest.mark.parametrize("backend", ["auto", "kernel", "columns"])
@pytest.mark.parametrize("games", [1, 70, 3000])
def test_every_backend_is_the_team_for_any_number_of_games(build, make_team, backend, games, changes):  # noqa: F811
    team = make_team(**changes)
    actor, plain = Actor(team, backend), Actor(team, "torch")
    for _ in range(3):
        inputs = torch.randn(3, games, 10)
        torch.testing.assert_close(actor.q_values(inputs), plain.q_values(inputs), rtol=1e-5, atol=1e-5)


@needs_kernels
def test_an_actor_takes_what_suits_the_number_of_games(build, make_team, monkeypatch):  # noqa: F811
    many = {"avx512": "kernel", "avx2": "columns", "portable": "columns"}
    team = make_team(hidden_dim=64)
    for build_name in many:
        monkeypatch.setattr(kernels, "describe", lambda name=build_name: name)
        actor, expected = Actor(team), many[build_name]
        assert [actor.backend_for(8, games) for games in (1, 23, 60, 4000)] == ["kernel", "kernel", "kernel", expected]
        assert actor.backend_for(1, 60) == "kernel" and actor.backend_for(100, 24) == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert actor.backend_for(8, 4000) == "torch"


@needs_kernels
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "magnitude24"}, *WITH_GAINS])
def test_backends_agree_and_forget_when_told(build, make_team, changes, sparse):  # noqa: F811
    team = make_team(**changes)
    kernel, plain = Actor(team, "kernel", sparse), Actor(team, "torch")
    inputs = torch.randn(3, 5, 10)
    first = kernel.q_values(inputs)
    torch.testing.assert_close(first, plain.q_values(inputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernel.q_values(inputs), plain.q_values(inputs), rtol=1e-5, atol=1e-5)
    kernel.reset()
    assert torch.equal(kernel.q_values(inputs), first)
    avail = torch.rand(3, 5, 5) < 0.5
    avail[..., 2] = True
    kernel.reset()
    chosen = kernel.actions(inputs, avail)
    assert avail.gather(-1, chosen.unsqueeze(-1)).all()


@pytest.mark.parametrize("backend", ["kernel", "columns", "torch"])
@pytest.mark.parametrize("changes", [{}, {"method": "magnitude24"}, {"method": "gains24"}])
def test_no_games_have_no_actions(make_team, backend, changes):
    if backend == "kernel" and kernels.library() is None:
        pytest.skip("the kernels are not built: no C compiler")
    team = make_team(**changes)
    assert Actor(team, backend=backend).q_values(torch.zeros(3, 0, team.input_dim)).shape == (3, 0, team.n_actions)


def test_another_default_device_changes_nothing(make_team):
    team = make_team()
    x = torch.rand(3, 2, team.input_dim)
    expected = {backend: Actor(team, backend=backend).q_values(x) for backend in ("columns", "torch")}
    with torch.device("meta"):
        for backend, q_values in expected.items():
            assert torch.equal(Actor(team, backend=backend).q_values(x), q_values)


def test_backend_that_is_not_there(make_team, monkeypatch):
    team = make_team()
    with pytest.raises(ConfigError, match="unknown backend 'kernl'; did you mean 'kernel'"):
        Actor(team, "kernl")
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(ConfigError, match="kernels are not built"):
        Actor(team, "kernel")
    assert Actor(team).q_values(torch.randn(3, 1, 10)).shape == (3, 1, 5)


@needs_kernels
@pytest.mark.parametrize(("changes", "matrices"), [({"method": "gains24"}, 1), ({"method": "k24-gains"}, 3)])
def test_a_team_that_differs_in_gains_alone_has_one_matrix(make_team, changes, matrices):
    team = make_team(**changes)
    assert team.one_matrix == (matrices == 1) and team.n_masks == 3
    kernel = Actor(team, "kernel")._kernel
    assert {len(layer.values) for layer in kernel._held.values()} == {matrices}
    if matrices == 1:
        with pytest.raises(ValueError, match="expected one network, and as many rows of each of 3"):
            kernel(torch.randn(1, 4, 10), kernel.initial_hidden(1, 4))
