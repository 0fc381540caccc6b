"""Masks of unit types: every unit sees the network through the mask of its type, whatever its place in the team."""

import dataclasses

import pytest
import torch

from k24lab.envs.base import EnvSpec
from k24lab.errors import ConfigError
from k24lab.lab.config import LEARNER_DEFAULTS, build_config
from k24lab.marl.agent import step
from k24lab.marl.batching import AgentRows, SharedRows, TypeRows
from k24lab.marl.learner import K24NQLearner, K24QLearner, build_learner

N_TYPES = 3


@pytest.fixture
def typed_spec() -> EnvSpec:
    """Four units of three types."""
    return EnvSpec(
        n_envs=4,
        n_agents=4,
        obs_dims=(6,) * 4,
        n_actions=(4,) * 4,
        state_dim=5,
        episode_limit=6,
        n_unit_types=N_TYPES,
    )


@pytest.fixture
def make(tiny_config, typed_spec):
    """Make a learner whose masks belong to unit types."""
    return lambda **changes: build_learner(tiny_config(**{"mask_per": "type"} | changes), typed_spec)


def reference_q_values(learner, batch):
    """Unit by unit, step by step, with the weights of the unit's type."""
    weights = learner.argmax_weights()
    n, t, agents, _ = batch.obs.shape
    q_values = torch.zeros(agents, t, n, learner.spec.action_dim)
    for b in range(n):
        for a in range(agents):
            kind = int(batch.unit_type[b, a])
            mine = {
                name: type(w)(w.weight[min(kind, len(w.weight) - 1)][None], w.bias[min(kind, len(w.bias) - 1)][None])
                for name, w in weights.items()
            }
            hidden = torch.zeros(1, learner.config.hidden_dim, 1)
            for k in range(t):
                q, hidden = step(mine, batch.obs[b, k, a].view(1, -1, 1), hidden)
                q_values[a, k, b] = q[0, :, 0]
    return q_values


# --- rows ------------------------------------------------------------------------------------------------------


def test_rows_of_agents_and_types_come_back_where_they_were():
    x = torch.randn(5, 2, 4, 3)  # [B, T, N, F]
    expected = x.permute(2, 1, 0, 3)
    assert torch.equal(AgentRows().merge(AgentRows().split(x)), expected)
    for rows in (SharedRows(4), TypeRows(torch.randint(N_TYPES, (5, 4)), N_TYPES)):
        assert torch.equal(rows.merge(rows.split(x)), expected)


def test_a_mask_sees_the_units_of_its_type_and_zeros():
    unit_type = torch.tensor([[0, 2], [2, 2]])
    x = torch.arange(1.0, 5.0).view(2, 1, 2, 1)  # units 1, 2 of the first episode, 3, 4 of the second
    split = TypeRows(unit_type, N_TYPES).split(x)[:, 0, 0]
    assert split.shape[1] % 8 == 0 and not split[:, 3:].any()
    assert split[:, :3].tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 4]]


def test_a_single_unit_comes_back_where_it_was():
    x = torch.randn(1, 2, 1, 3)
    rows = TypeRows(torch.tensor([[1]]), N_TYPES)
    assert torch.equal(rows.merge(rows.split(x)), x.permute(2, 1, 0, 3))


# --- agent and learner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"mask_rnn": False}, {"method": "random24"}, {"method": "nops"}])
def test_q_values_equal_a_slow_reference_unit_by_unit(changes, make, typed_spec, random_episodes):
    learner = make(**changes)
    batch = random_episodes(spec=typed_spec)
    with torch.no_grad():
        rows = learner.rows(batch.unit_type)
        q_values = learner._unroll(batch, rows, learner.argmax_weights()).q_values
    torch.testing.assert_close(q_values, reference_q_values(learner, batch), atol=1e-5, rtol=1e-5)


def test_types_share_a_mask_across_agents_and_agents_do_not(make, tiny_config, typed_spec):
    assert all(layer.n_masks == N_TYPES for layer in make().masked_layers.values()) and make().n_masks == N_TYPES
    per_agent = K24QLearner(tiny_config(mask_per="agent"), typed_spec)
    assert all(layer.n_masks == typed_spec.n_agents for layer in per_agent.masked_layers.values())
    assert make(method="fups").n_masks == typed_spec.n_agents  # shared: nothing belongs to a type


def test_dead_units_count_in_no_running_activation(make, typed_spec, random_episodes):
    batch = random_episodes(spec=typed_spec)
    alive = torch.rand(batch.alive.shape) < 0.5
    garbage = torch.where(alive.unsqueeze(-1), batch.obs, 50.0)
    learners = [make(method="k24", noise="none") for _ in range(2)]
    learners[1].load_state_dict(learners[0].state_dict())
    for learner, obs in zip(learners, (batch.obs, garbage), strict=True):
        learner.update(dataclasses.replace(batch, alive=alive, obs=obs), t_env=100)
    emas = [learner.masked_layers["fc1"].ema_tracker.ema_activation for learner in learners]
    torch.testing.assert_close(emas[0], emas[1])


def test_a_type_that_is_in_no_episode_keeps_its_running_activation(make, typed_spec, random_episodes):
    batch = random_episodes(spec=typed_spec)
    learner = make()
    learner.update(dataclasses.replace(batch, unit_type=batch.unit_type.clamp_max(1)), t_env=100)
    ema = learner.masked_layers["fc1"].ema_tracker
    assert ema.started.flatten().tolist() == [True, True, False]
    assert torch.equal(ema.ema_activation[2], torch.ones(6))


@pytest.mark.parametrize("learner", ["q", "nq"])
@pytest.mark.parametrize("method", ["k24", "k24-literal", "random24", "nops", "fups-id"])
def test_every_method_learns_with_types(method, learner, make, typed_spec, random_episodes):
    settings = {"batch_size": 8, "buffer_size": 64}
    learned = make(method=method, learner=learner, **settings)
    before = [p.detach().clone() for p in learned.agent.parameters()]
    assert torch.tensor(learned.update(random_episodes(spec=typed_spec), 100, log=True)["loss"]).isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, learned.agent.parameters(), strict=True))


def test_the_learner_for_types_uses_td_lambda_targets(make, typed_spec, random_episodes):
    one, long = (make(learner=kind, td_lambda=0.0, **NQ_LIKE) for kind in ("q", "nq"))
    assert isinstance(long, K24NQLearner) and type(one) is K24QLearner
    long.load_state_dict(one.state_dict())
    losses = [x.update(random_episodes(spec=typed_spec), 100)["loss_td"] for x in (one, long)]
    assert losses[0] == pytest.approx(losses[1])  # lambda = 0 is one step
    longer = make(learner="nq", td_lambda=0.6, **NQ_LIKE)
    assert longer.update(random_episodes(spec=typed_spec), 100)["loss_td"] != pytest.approx(losses[0])


NQ_LIKE = LEARNER_DEFAULTS["nq"] | {"batch_size": 8, "buffer_size": 64}


# --- bad input -------------------------------------------------------------------------------------------------


def test_a_world_without_types_is_an_error_that_says_so(tiny_config, tiny_spec):
    with pytest.raises(ConfigError, match="mask_per = 'type' needs an environment with unit types; 'rolenav' has none"):
        K24QLearner(tiny_config(mask_per="type"), tiny_spec)


def test_ids_contradict_masks_of_types():
    with pytest.raises(ConfigError, match="agent_id = True"):
        build_config({"mask_per": "type", "agent_id": True})
    build_config({"mask_per": "type", "method": "fups-id"})  # a shared network may have them


def test_learner_defaults_apply_and_a_users_value_wins():
    config = build_config({"learner": "nq", "gamma": 0.9})
    assert config.gamma == 0.9 and config.lr == LEARNER_DEFAULTS["nq"]["lr"] and config.td_lambda == 0.6
