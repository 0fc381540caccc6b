"""The rules that play the other side of mpe2's tasks, against their formulas written out."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from mpe2 import simple_tag_v3

from k24lab.envs.mpe2 import EDGE, LOOK_AHEAD, MOVES, Mpe2ParallelEnv, flee, wander


def agent(name: str, position, velocity=(0.0, 0.0), adversary: bool = False) -> SimpleNamespace:
    state = SimpleNamespace(p_pos=np.array(position, dtype=float), p_vel=np.array(velocity, dtype=float))
    return SimpleNamespace(name=name, adversary=adversary, state=state)


def slow_direction(prey: SimpleNamespace, predators: list[SimpleNamespace]) -> list[float]:
    """Away from predators with the inverse square of their distance, and away from walls that are near."""
    position = [prey.state.p_pos[k] + LOOK_AHEAD * prey.state.p_vel[k] for k in (0, 1)]
    wish = [-2 * math.copysign(1, p) * math.exp(8 * (abs(p) - EDGE)) for p in position]
    for predator in predators:
        away = [position[k] - predator.state.p_pos[k] for k in (0, 1)]
        distance = math.hypot(*away)
        wish = [wish[k] + away[k] / distance**3 for k in (0, 1)]
    return wish


def test_a_prey_flees_along_the_axis_that_leads_furthest_where_its_formula_points():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        predators = [agent(f"adversary_{k}", rng.uniform(-1, 1, 2), adversary=True) for k in range(3)]
        preys = [agent(f"agent_{k}", rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 2)) for k in range(2)]
        actions = flee(SimpleNamespace(agents=[*predators, *preys]), rng)
        assert list(actions) == ["agent_0", "agent_1"]
        for prey in preys:
            x, y = slow_direction(prey, predators)
            gains = {0: 0.0, 1: -x, 2: x, 3: -y, 4: y}
            assert gains[actions[prey.name]] == max(gains.values())
            seen.add(actions[prey.name])
    assert seen == {1, 2, 3, 4}


def test_a_predator_on_top_of_a_prey_is_no_division_by_zero():
    world = SimpleNamespace(agents=[agent("adversary_0", (0.5, 0.5), adversary=True), agent("agent_0", (0.5, 0.5))])
    assert flee(world, np.random.default_rng(0))["agent_0"] in range(5)


@pytest.mark.parametrize("action", range(5))
def test_moves_are_those_of_mpe2(action):
    env = Mpe2ParallelEnv(simple_tag_v3.raw_env(num_obstacles=0), None)
    env.reset(seed=1)
    before = {a.name: a.state.p_vel.copy() for a in env.world.agents}
    env.step({name: action if name == "agent_0" else 0 for name in env.agents})
    (prey,) = (a for a in env.world.agents if not a.adversary)
    np.testing.assert_allclose(np.sign(prey.state.p_vel - before["agent_0"]), MOVES[action])


def test_a_wandering_prey_takes_every_action_as_often_and_no_predator_is_played():
    world = SimpleNamespace(agents=[agent("adversary_0", (0, 0), adversary=True), agent("agent_0", (0, 0))])
    rng = np.random.default_rng(0)
    actions = [wander(world, rng) for _ in range(2000)]
    assert all(list(action) == ["agent_0"] for action in actions)
    counts = np.bincount([action["agent_0"] for action in actions], minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # one in a thousand, 4 degrees of freedom


@pytest.mark.parametrize("script", [flee, wander])
def test_a_seed_decides_an_episode_whatever_was_played_before(script):
    env = Mpe2ParallelEnv(simple_tag_v3.raw_env(max_cycles=5), script)
    assert env.possible_agents == ["adversary_0", "adversary_1", "adversary_2"]

    def play(seed: int) -> list[np.ndarray]:
        obs, infos = env.reset(seed=seed)
        assert not infos and list(obs) == env.agents == env.possible_agents
        seen = [obs["adversary_0"]]
        for t in range(5):
            obs, rewards, terminated, truncated, _ = env.step(dict.fromkeys(env.agents, 1 + t % 4))
            assert list(obs) == list(rewards) == list(truncated) == env.possible_agents
            assert all(truncated.values()) == (t == 4) and not any(terminated.values())
            seen.append(obs["adversary_0"])
        assert env.agents == []
        return seen

    first, other, again = play(3), play(4), play(3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_environment_without_a_prey_cannot_be_hunted_in():
    with pytest.raises(ValueError, match="no good agent"):
        Mpe2ParallelEnv(simple_tag_v3.raw_env(num_good=0), flee)
