"""What a run keeps of its trained team: the patterns of its masks, and what every policy would do on every history."""

import numpy as np
import pytest
import torch
from reference_cases import SPEC, episodes, make

from k24lab.core.masks import argmax_masks
from k24lab.core.patterns import PATTERNS_24
from k24lab.envs.registry import make_env
from k24lab.marl.agent import step
from k24lab.marl.learner import build_learner
from k24lab.marl.policy import acting_policy, acting_weights, behaviour, pattern_arrays, play, trained_policy
from k24lab.marl.rollout import agent_inputs
from k24lab.marl.seeding import Stream, derive_seed

T_ENV = 300


def slow_q_values(learner, batch, n_episodes, weights):
    """Q-values [M, S, A] and availability [S, A] of one history after another, in the order time, episode, agent."""
    histories = {}
    for b in range(n_episodes):
        for n in range(SPEC.n_agents):
            hidden = torch.zeros(learner.n_masks, learner.config.hidden_dim, 1, dtype=batch.obs.dtype)
            for t in range(int(batch.filled[b].sum())):
                x = batch.obs[b, t, n].expand(learner.n_masks, -1)
                x = agent_inputs(x, learner.config.agent_id)  # policy m acts as agent m
                q, hidden = step(weights, x.unsqueeze(2), hidden)
                if batch.alive[b, t, n]:
                    histories[t, b, n] = q.squeeze(2), batch.avail_actions[b, t, n]
    in_order = [histories[key] for key in sorted(histories)]
    return torch.stack([q for q, _ in in_order], dim=1), torch.stack([avail for _, avail in in_order])


@pytest.mark.parametrize("n_episodes", [2, 4])
@pytest.mark.parametrize(
    "changes",
    [{"method": "k24"}, {"method": "k24-literal"}, {"method": "fups-id"}, {"method": "k24", "mask_per": "type"}],
)
def test_every_policy_is_asked_about_every_history_of_the_living(changes, n_episodes):
    learner, batch = make(changes, torch.float64), episodes(2)
    generator = torch.Generator().manual_seed(derive_seed(learner.config.seed, Stream.TEST_MASKS))
    weights = acting_weights(learner, T_ENV, generator)
    found = behaviour(learner, T_ENV, batch, n_episodes)
    q_values, avail = slow_q_values(learner, batch, n_episodes, weights)
    assert found["q_values"].shape == (3, int((batch.filled.unsqueeze(-1) & batch.alive[:, :-1])[:n_episodes].sum()), 4)
    torch.testing.assert_close(torch.from_numpy(found["q_values"]), q_values)
    assert torch.equal(torch.from_numpy(found["avail_actions"]), avail)


@pytest.mark.parametrize("method", ["k24", "k24-literal", "random24"])
def test_stored_patterns_are_those_of_the_argmax_masks_with_their_probabilities(method):
    learner = make({"method": method}, torch.float64)
    arrays = pattern_arrays(learner, T_ENV)
    layers = learner.masked_layers
    assert set(arrays) == {f"{name}/pattern_{kind}" for name in layers for kind in ("index", "probs")}
    for (name, layer), mask in zip(layers.items(), argmax_masks(list(layers.values())), strict=True):
        index, probs = arrays[f"{name}/pattern_index"], arrays[f"{name}/pattern_probs"]
        groups = -(-layer.in_features // 4)
        assert index.shape == (3, layer.out_features, groups) and index.dtype == "uint8"
        assert probs.shape == (*index.shape, 6) and probs.dtype == "float16"
        kept = torch.tensor(PATTERNS_24)[torch.from_numpy(index).long()].flatten(2)[..., : layer.in_features]
        assert torch.equal(kept.double(), mask), name
        assert abs(probs.sum(axis=-1, dtype="float64") - 1).max() < 5e-3
        chosen = np.take_along_axis(probs, index[..., None].astype(int), axis=-1)[..., 0]
        assert (chosen >= probs.max(axis=-1) - 1e-3).all() and probs.std() > 1e-3 * (method != "k24-literal")


@pytest.mark.parametrize("acting_masks", ["argmax", "drawn"])
def test_masks_of_acting_are_the_argmax_at_every_step_or_drawn_anew_at_each(acting_masks):
    learner = make({"method": "k24", "acting_masks": acting_masks}, torch.float64)
    x, hidden = torch.randn(3, 6, 2, dtype=torch.float64), torch.zeros(3, 8, 2, dtype=torch.float64)
    policy, again = (acting_policy(learner, T_ENV, seed=5) for _ in range(2))
    first, second = (policy(x, hidden)[0] for _ in range(2))
    assert torch.equal(again(x, hidden)[0], first)
    assert torch.equal(first, second) == (acting_masks == "argmax")
    assert torch.equal(step(learner.argmax_weights(), x, hidden)[0], first) == (acting_masks == "argmax")
    assert torch.equal(acting_policy(learner, T_ENV, seed=6)(x, hidden)[0], first) == (acting_masks == "argmax")


@pytest.mark.parametrize("method", ["k24", "k24-literal"])
def test_episodes_are_the_first_greedy_ones_of_the_run_unless_others_are_asked_for(method, tiny_config):
    env = make_env("rolenav", 3)
    learner = build_learner(tiny_config(method=method), env.spec)

    def played(**given):
        policy = trained_policy(learner, 200, 7, *given.values())
        return play(learner, env, policy, 7, **given)

    first, again, second = played(), played(counter=0), played(counter=1)
    assert torch.equal(first.obs, again.obs) and torch.equal(first.actions, again.actions)
    assert not torch.equal(first.obs[:, 0], second.obs[:, 0])
    assert torch.equal(first.obs[:, 0], env.reset(derive_seed(7, Stream.TEST_EPISODES, 0)).obs)
