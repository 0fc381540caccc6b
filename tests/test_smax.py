"""SMAX through the adapter: what it shows is checked against the health, positions and types in SMAX's own state."""

import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest
import torch

from k24lab.envs import smax
from k24lab.envs.base import Step
from k24lab.envs.registry import make_env, task_names
from k24lab.envs.smax import SCENARIOS, STOP, Smax

N_ENVS, SCENARIO = 256, "smacv2_5_units"  # one size for all tests: compiling takes longest
ATTACK_RANGE = torch.tensor([5.0, 6.0, 6.0, 2.0, 2.0, 5.0])


def need_jaxmarl() -> None:
    if importlib.util.find_spec("jaxmarl") is None:  # importing it takes seconds and swaps the streams
        pytest.skip("needs JaxMARL, the extra smax")


@pytest.fixture
def make():
    """Build battles of the one size."""
    need_jaxmarl()
    return lambda **options: Smax(N_ENVS, SCENARIO, **options)


def attack_if_possible(step: Step, generator: torch.Generator) -> torch.Tensor:
    """The first available attack, else a random move; the dead stop."""
    attacks = step.avail_actions[..., STOP + 1 :]
    move = torch.randint(0, STOP, attacks.shape[:2], generator=generator)
    chosen = torch.where(attacks.any(dim=-1), STOP + 1 + attacks.int().argmax(dim=-1), move)
    return torch.where(step.alive, chosen, STOP)


def ended(step: Step) -> torch.Tensor:
    return step.terminated | step.truncated


def play(env: Smax, seed: int, n_steps: int = smax.EPISODE_LIMIT, action_seed: int = 0) -> list[Step]:
    """The steps of one episode in each environment, until all have ended or `n_steps` are over."""
    generator, steps = torch.Generator().manual_seed(action_seed), [env.reset(seed)]
    while len(steps) <= n_steps and not ended(steps[-1]).all():
        steps.append(env.step(attack_if_possible(steps[-1], generator)))
    return steps


@pytest.fixture(scope="module")
def episode() -> list[Step]:
    """One whole episode of 256 battles; no test changes it."""
    need_jaxmarl()
    return play(Smax(N_ENVS, SCENARIO), seed=1)


def fields(step: Step) -> dict[str, torch.Tensor]:
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}


def same(first: list[Step], second: list[Step]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(value, fields(b)[name])
        for a, b in zip(first, second, strict=True)
        for name, value in fields(a).items()
    )


def units(step: Step) -> torch.Tensor:
    """Health (share), x, y and six type bits of all ten units, as SMAX's own state has them: [E, 10, 9]."""
    features = step.state[:, :100].unflatten(1, (10, 10))
    return torch.cat([features[..., :3], features[..., 4:]], dim=-1)


# What a step shows


def test_spec_is_what_a_step_holds(episode):
    spec = make_env(f"smax/{SCENARIO}", N_ENVS).spec
    step = episode[0]
    assert step.obs.shape == (N_ENVS, spec.n_agents, spec.obs_dim) == (N_ENVS, 5, 127)
    assert step.state.shape == (N_ENVS, spec.state_dim) == (N_ENVS, 120)
    assert step.avail_actions.shape == (N_ENVS, 5, spec.action_dim) == (N_ENVS, 5, 10)
    assert (spec.episode_limit, spec.n_unit_types, spec.has_win) == (100, 6, True)
    assert step.obs.dtype == step.state.dtype == step.reward.dtype == torch.float32
    assert step.unit_type.dtype == torch.int64


@pytest.mark.parametrize(
    "scenario, n_agents, n_actions, obs_dim, state_dim, types",
    [
        ("3s_vs_5z", 3, 10, 101, 96, ("stalker",)),
        ("2s3z", 5, 10, 127, 120, ("stalker", "zealot")),
        ("27m_vs_30m", 27, 35, 738, 684, ("marine",)),
    ],
)
def test_sizes_and_unit_types_of_other_scenarios(make, scenario, n_agents, n_actions, obs_dim, state_dim, types):
    import jax

    env = make_env(f"smax/{scenario}", 2)
    spec = env.spec
    assert (spec.n_agents, spec.n_actions[0], spec.obs_dim, spec.state_dim) == (n_agents, n_actions, obs_dim, state_dim)
    assert spec.unit_type_names == types and spec.n_unit_types == len(types)
    _, _, rows = jax.eval_shape(env._battle.begin, np.zeros((2, 2), np.uint32), 100)  # nothing is compiled
    assert rows["obs"].shape == (2, n_agents, obs_dim) and rows["state"].shape == (2, state_dim)
    assert rows["avail_actions"].shape == (2, n_agents, n_actions) and rows["unit_type"].shape == (2, n_agents)


def test_every_scenario_of_jaxmarl_is_a_task(make):
    make_env("smax/3m", 1)
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert set(SCENARIOS) == set(MAP_NAME_TO_SCENARIO)
    assert {f"smax/{name}" for name in SCENARIOS} <= set(task_names())


def test_attacks_are_available_on_living_enemies_in_range(episode):
    for step in episode[::7]:
        health, position = units(step)[..., 0], units(step)[..., 1:3]
        distance = torch.cdist(position[:, :5], position[:, 5:])
        expected = (distance < ATTACK_RANGE[step.unit_type].unsqueeze(-1)) & (health > 0)[:, None, 5:]
        clear = ((distance - ATTACK_RANGE[step.unit_type].unsqueeze(-1)).abs() > 1e-4) & step.alive.unsqueeze(-1)
        assert torch.equal(step.avail_actions[..., 5:] & clear, expected & clear)
        assert step.avail_actions[step.alive][:, :5].all()
    assert any(step.avail_actions[..., 5:].any() for step in episode)


def test_the_dead_can_only_stop_and_see_nothing(episode):
    for step in episode[::7]:
        assert torch.equal(step.alive, units(step)[:, :5, 0] > 0)
        dead = ~step.alive
        assert (step.avail_actions[dead].int() == (torch.arange(10) == STOP).int()).all()
        assert (step.obs[dead] == 0).all() and (step.obs[step.alive] != 0).any(dim=-1).all()
    assert dead.any()


def test_unit_types_are_those_of_the_reset_also_of_the_dead(episode):
    assert torch.equal(episode[0].unit_type, episode[0].obs[..., -6:].argmax(dim=-1))
    assert len(episode[0].unit_type.unique()) == 6
    assert all(torch.equal(step.unit_type, episode[0].unit_type) for step in episode)


# Ends, wins, rewards


def test_ends_are_told_apart(episode):
    n_steps = torch.stack([~ended(step) for step in episode]).sum(dim=0)
    for step in episode:
        alive = (units(step)[..., 0] > 0).unflatten(1, (2, 5)).any(dim=-1)  # [E, side]
        assert torch.equal(step.terminated, ~alive.all(dim=1))
        assert torch.equal(step.won, alive[:, 0] & ~alive[:, 1])
    last = episode[-1]
    assert torch.equal(last.truncated, (n_steps == 100) & ~last.terminated) and last.truncated.any()
    assert len(episode) == 101 and 0 < last.won.sum() < last.terminated.sum()


def test_nobody_wins_when_both_sides_die_at_once(make):
    env = make()
    env.reset(0)
    keys, state, rows = env._carry
    health = np.array(state.state.unit_health)
    health[:2, 5:] = 0  # the enemies of two battles
    health[1:3, :5] = 0  # the allies of two
    env._carry = (keys, state.replace(state=state.state.replace(unit_health=health)), rows)
    step = env.step(torch.full((N_ENVS, 5), STOP))
    assert step.terminated[:4].tolist() == [True, True, True, False]
    assert step.won[:4].tolist() == [True, False, False, False]


def test_the_limit_can_be_set_and_a_battle_that_ends_with_it_is_terminated(make, episode):
    first_end = int(torch.stack([step.terminated for step in episode]).any(dim=1).int().argmax())
    steps = play(make(episode_limit=first_end), seed=1)
    assert len(steps) == first_end + 1 and not ended(steps[-2]).any()
    assert steps[-1].terminated.any() and torch.equal(steps[-1].truncated, ~steps[-1].terminated)
    assert torch.equal(steps[-1].terminated, episode[first_end].terminated)


def test_team_reward_is_the_enemies_loss_and_one_for_the_win(episode):
    for before, step in itertools.pairwise(episode):
        loss = (units(before)[:, 5:, 0] - units(step)[:, 5:, 0]).mean(dim=1)
        expected = loss + (step.won & ~before.won)
        assert torch.allclose(step.reward, expected, atol=1e-5)
    returns = torch.stack([step.reward for step in episode]).sum(dim=0)
    assert torch.allclose(returns[episode[-1].won], torch.tensor(2.0)) and (returns[~episode[-1].won] < 1.001).all()


def test_ended_battles_are_frozen(episode):
    for before, step in itertools.pairwise(episode):
        rows = ended(before)
        assert (step.reward[rows] == 0).all()
        for name, value in fields(step).items():
            if name != "reward":
                assert torch.equal(value[rows], fields(before)[name][rows]), name
    assert 0 < ended(episode[50]).sum() < N_ENVS


def test_ended_battles_ignore_actions_and_others_refuse_unavailable_ones(make):
    env = make(episode_limit=1)
    env.reset(0)
    stop = torch.full((N_ENVS, 5), STOP)
    for action in (-1, 10, 9):  # nobody is in range of the last enemy in every battle
        wrong = stop.clone()
        wrong[:, 2] = action
        with pytest.raises(
            ValueError, match=rf"environment \d+, agent 'ally_2': action {action} is not available \(allowed: \[0"
        ):
            env.step(wrong)
    last = env.step(stop)
    assert ended(last).all()
    assert torch.equal(env.step(wrong).obs, last.obs)


def test_step_before_reset_is_an_error(make):
    with pytest.raises(ValueError, match="before the first reset"):
        make().step(torch.full((N_ENVS, 5), STOP))


# Seeds, memory, compilation


def test_same_seed_same_episodes_whatever_else_is_played(make, episode):
    env, other = make(), make()
    other.reset(7)
    env.reset(5)
    env.step(torch.full((N_ENVS, 5), STOP))  # and given up
    generator, steps = torch.Generator().manual_seed(0), [env.reset(1)]
    for _ in range(40):
        other.step(torch.full((N_ENVS, 5), STOP))
        steps.append(env.step(attack_if_possible(steps[-1], generator)))
    assert same(steps, episode[:41])


def test_every_battle_and_every_seed_is_another(make, episode):
    assert len(episode[0].obs.flatten(1).unique(dim=0)) == N_ENVS
    other = make().reset(2)
    assert not (episode[0].obs == other.obs).flatten(1).all(dim=1).any()


def test_each_battle_draws_its_own_luck_at_each_step(make):
    """Battles that start alike and are played alike drift apart: weapons reload with noise."""
    env = make()
    env.reset(3)
    keys, state, rows = env._carry
    import jax

    env._carry = (keys, *jax.tree.map(lambda x: jax.numpy.broadcast_to(x[:1], x.shape), (state, rows)))
    for _ in range(40):
        step = env.step(torch.full((N_ENVS, 5), STOP))
    assert len(step.state.unique(dim=0)) > N_ENVS // 4


def test_steps_are_copies(make, episode):
    env = make()
    generator, steps = torch.Generator().manual_seed(0), [env.reset(1)]
    kept = [{name: value.clone() for name, value in fields(steps[0]).items()}]
    for _ in range(5):
        actions = attack_if_possible(steps[-1], generator)
        for value in fields(steps[-1]).values():
            value.fill_(1)  # what the user does with a step is no business of the environment
        steps.append(env.step(actions))
        kept.append({name: value.clone() for name, value in fields(steps[-1]).items()})
        actions.fill_(0)
    assert all(torch.equal(kept[t][name], value) for t in range(6) for name, value in fields(episode[t]).items())
    assert all((value == 1).all() for step in steps[:-1] for value in fields(step).values())


def test_a_step_hands_on_what_it_took(make):
    """Shapes, types and weak types: another one after the first step would compile the second step once more."""
    import jax

    battle = make()._battle
    first = jax.eval_shape(battle.begin, np.zeros((N_ENVS, 2), np.uint32), 100)
    second = jax.eval_shape(battle.advance, first, np.full((N_ENVS, 5), STOP, np.int32), 100)
    for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, after.weak_type)


def test_nothing_is_compiled_after_the_first_reset_and_step(make, episode):
    from jax import monitoring

    compiled: list[str] = []

    def count(event: str, duration: float, **_) -> None:
        if "compile" in event:
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(count)
    try:
        play(make(), seed=4, n_steps=3)
        play(make(episode_limit=2), seed=5)
        assert compiled == []
        import jax

        jax.jit(lambda x: x + 1)(np.zeros(3))
        assert compiled  # the listener works
    finally:
        monitoring.unregister_event_duration_listener(count)


# A policy of which the result is known


def test_attack_if_possible_wins_one_battle_in_nine(make, episode):
    won = torch.cat([episode[-1].won, play(make(), seed=2, action_seed=1)[-1].won])
    assert 0.07 < won.float().mean() < 0.17  # 11.6 % of 1280; five standard deviations of 512
