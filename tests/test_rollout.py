from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from k24lab.envs.base import EnvSpec, Step, VecEnv
from k24lab.envs.rolenav import RoleNav
from k24lab.errors import RunError
from k24lab.marl.agent import build_agent, step
from k24lab.marl.batching import AgentRows
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import agent_inputs, collect, epsilon_greedy

LENGTHS = (2, 5, 3, 6)
LIMIT = 6


class CountingEnv(VecEnv):
    """Episodes that end after LENGTHS steps; the first two terminate, the others are truncated.

    Observation: env, agent and time. Action a is available if a <= time. Agent 1 dies after one step.
    """

    def __init__(self):
        self.spec = EnvSpec(n_envs=4, n_agents=2, obs_dims=(3, 3), n_actions=(4, 4), state_dim=2, episode_limit=LIMIT)
        self.seen: list[torch.Tensor] = []

    def reset(self, seed: int) -> Step:
        self.t = torch.zeros(4, dtype=torch.int64)
        self.seen = []
        return self._observe(torch.zeros(4))

    def step(self, actions: torch.Tensor) -> Step:
        self.seen.append(actions)
        running = self.t < torch.tensor(LENGTHS)
        self.t = self.t + running
        return self._observe(torch.where(running, self.t.float(), 99.0))  # a world may say anything after the end

    def _observe(self, reward: torch.Tensor) -> Step:
        env, agent = torch.meshgrid(torch.arange(4.0), torch.arange(2.0), indexing="ij")
        time = self.t.float().unsqueeze(1).expand(4, 2)
        ended = self.t == torch.tensor(LENGTHS)
        return Step(
            obs=torch.stack([env, agent, time], dim=-1),
            state=torch.stack([torch.arange(4.0), self.t.float()], dim=-1),
            avail_actions=torch.arange(4) <= self.t[:, None, None].expand(4, 2, 1),
            reward=reward,
            terminated=ended & torch.tensor([True, True, False, False]),
            truncated=ended & torch.tensor([False, False, True, True]),
            alive=torch.stack([torch.ones(4, dtype=torch.bool), self.t < 1], dim=1),
        )


def play(env, tiny_config, epsilon=1.0, seed=0, explore=0, with_state=True, **changes) -> EpisodeBatch:
    config = tiny_config(method="fups", **changes)
    torch.manual_seed(5)
    extra = env.spec.n_agents if config.agent_id else 0
    agent = build_agent(config, env.spec.obs_dim + extra, env.spec.action_dim, env.spec.n_agents)
    return collect(
        env,
        partial(step, agent.weights()),
        initial_hidden=agent.initial_hidden,
        rows_of=lambda _: AgentRows(),
        epsilon=epsilon,
        seed=seed,
        generator=torch.Generator().manual_seed(explore),
        agent_id=config.agent_id,
        with_state=with_state,
    )


def test_episodes_that_end_at_different_times_are_stored_to_their_own_end(tiny_config):
    batch = play(CountingEnv(), tiny_config)
    for e, length in enumerate(LENGTHS):
        assert batch.filled[e].tolist() == [t < length for t in range(LIMIT)]
        assert batch.terminated[e].tolist() == [e < 2 and t == length - 1 for t in range(LIMIT)]
        assert batch.reward[e, :length].tolist() == list(range(1, length + 1))
        assert not batch.reward[e, length:].any()
        for t in range(length + 1):  # the observation after the last step included
            assert batch.obs[e, t].tolist() == [[e, 0, t], [e, 1, t]]
            assert batch.state[e, t].tolist() == [e, t]
            assert batch.avail_actions[e, t, 0].tolist() == [a <= t for a in range(4)]
            assert batch.alive[e, t].tolist() == [True, t < 1]
    assert batch.returns.tolist() == [3, 15, 6, 21]
    assert batch.n_steps == sum(LENGTHS)


def test_stored_actions_are_those_that_the_world_got_and_were_available(tiny_config):
    env = CountingEnv()
    batch = play(env, tiny_config)
    assert torch.equal(batch.actions, torch.stack(env.seen, dim=1))
    available = batch.avail_actions[:, :-1].gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    assert available[batch.filled].all()


def test_won_episodes_are_those_that_the_environment_says_at_the_end(tiny_config, monkeypatch):
    won = torch.tensor([True, False, False, True])
    env = CountingEnv()
    observe = env._observe
    monkeypatch.setattr(
        env, "_observe", lambda reward: replace(observe(reward), won=won & (env.t == torch.tensor(LENGTHS)))
    )
    assert torch.equal(play(env, tiny_config).won, won)


def test_rollout_stops_when_all_episodes_have_ended(tiny_config):
    env = CountingEnv()
    env.spec = EnvSpec(n_envs=4, n_agents=2, obs_dims=(3, 3), n_actions=(4, 4), state_dim=2, episode_limit=50)
    batch = play(env, tiny_config)
    assert len(env.seen) == max(LENGTHS)
    assert batch.n_steps == sum(LENGTHS)


def test_state_is_left_out_where_no_mixer_reads_it(tiny_config):
    assert play(CountingEnv(), tiny_config, with_state=False).state.shape[-1] == 0


@pytest.mark.parametrize("agent_id", [False, True])
def test_same_seed_gives_the_same_episodes_and_another_seed_others(agent_id, tiny_config):
    env = RoleNav(4)
    a, b, c = (play(env, tiny_config, epsilon=0.5, seed=s, agent_id=agent_id) for s in (3, 3, 4))
    for field in fields(EpisodeBatch):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name
    assert not torch.equal(a.obs, c.obs)


def test_greedy_episodes_use_no_random_numbers(tiny_config):
    env = RoleNav(4)
    a, b = (play(env, tiny_config, epsilon=0.0, explore=seed) for seed in (1, 2))
    assert torch.equal(a.actions, b.actions)


# --- exploration -----------------------------------------------------------------------------------------------


def test_exploration_is_uniform_over_the_available_actions():
    q, avail = torch.randn(5000, 2, 5), torch.tensor([True, False, True, True, False]).expand(5000, 2, 5)
    actions = epsilon_greedy(q, avail, 1.0, torch.Generator().manual_seed(0))
    counts = torch.bincount(actions.flatten(), minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    expected = 10_000 / 3
    assert ((counts[[0, 2, 3]] - expected) ** 2 / expected).sum() < 13.8  # one in a thousand, 2 degrees of freedom


def test_share_epsilon_of_the_actions_is_explored():
    q = torch.zeros(10_000, 1, 4)
    q[..., 1] = 1.0
    avail = torch.ones_like(q, dtype=torch.bool)
    actions = epsilon_greedy(q, avail, 0.4, torch.Generator().manual_seed(0))
    assert (actions == 1).float().mean().item() == pytest.approx(0.6 + 0.4 / 4, abs=0.02)


def test_without_exploration_the_best_available_action_is_taken():
    q = torch.tensor([[[5.0, 1.0, 3.0]]])
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert epsilon_greedy(q, torch.tensor([[[True] * 3]]), 0.0, generator).item() == 0
    assert epsilon_greedy(q, torch.tensor([[[False, True, True]]]), 0.0, generator).item() == 2
    assert torch.equal(generator.get_state(), before)


# --- inputs and seeds ------------------------------------------------------------------------------------------


def test_agent_id_appends_a_one_hot_index():
    obs = torch.randn(2, 5, 3, 4)
    assert agent_inputs(obs, False) is obs
    inputs = agent_inputs(obs, True)
    assert torch.equal(inputs[..., :4], obs)
    assert torch.equal(inputs[..., 4:], torch.eye(3).expand(2, 5, 3, 3))


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("obs", (2, 1, 0), r"environment 2: obs of agent 1 is nan at step 1"),
        ("state", (1, 1), r"environment 1: state is nan at step 1"),
        ("reward", (3,), r"environment 3: reward is nan at step 0"),
    ],
)
def test_a_world_that_says_nan_is_named_with_the_step(name, place, message, tiny_config, monkeypatch):
    env, observe = CountingEnv(), CountingEnv._observe

    def poisoned(self, reward):
        now = observe(self, reward)
        if self.t[3] == 1:
            getattr(now, name)[place] = torch.nan
        return now

    monkeypatch.setattr(CountingEnv, "_observe", poisoned)
    with pytest.raises(RunError, match=message):
        play(env, tiny_config)


def test_what_a_world_says_after_the_end_does_not_matter(tiny_config, monkeypatch):
    expected, observe = play(CountingEnv(), tiny_config), CountingEnv._observe

    def late(self, reward):
        now = observe(self, reward)
        now.reward[reward == 99.0] = torch.nan
        return now

    monkeypatch.setattr(CountingEnv, "_observe", late)
    assert torch.equal(play(CountingEnv(), tiny_config).reward, expected.reward)
