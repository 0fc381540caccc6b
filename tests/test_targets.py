import pytest
import torch

from k24lab.marl.learner import K24QLearner
from k24lab.marl.targets import double_q_values, greedy_actions, one_step, td_lambda


def test_double_q_takes_the_online_choice_and_the_target_value():
    online = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]])
    target = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    avail = torch.ones(2, 3, dtype=torch.bool)
    assert double_q_values(online, target, avail).tolist() == [20.0, 40.0]
    avail[0, 1] = False
    assert double_q_values(online, target, avail).tolist() == [30.0, 40.0]


def test_unavailable_actions_never_win():
    q = torch.randn(200, 3, 6) * 100
    avail = torch.rand(q.shape) < 0.4
    avail[..., 2] = True
    q[~avail] = 1e9
    chosen = greedy_actions(q, avail)
    assert avail.gather(-1, chosen.unsqueeze(-1)).all()
    best = torch.where(avail, q, -torch.inf).amax(dim=-1)
    assert torch.equal(q.gather(-1, chosen.unsqueeze(-1)).squeeze(-1), best)


def test_only_termination_ends_the_bootstrap():
    reward, value = torch.tensor([[1.0], [2.0]]), torch.tensor([[[10.0], [20.0]]])
    terminated = torch.tensor([[False], [True]])
    assert one_step(reward, terminated, value, 0.5).squeeze().tolist() == [6.0, 2.0]


def test_every_agent_of_independent_learning_gets_the_team_reward():
    value = torch.tensor([[[10.0]], [[20.0]]])
    targets = one_step(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool), value, 0.5)
    assert targets.flatten().tolist() == [6.0, 11.0]


# --- through the learner ---------------------------------------------------------------------------------------


def constant_learner(tiny_config, tiny_spec, **changes):
    """A learner whose online values are 1, 2, 3, 4 and whose target values are 40, 30, 20, 10, whatever it sees."""
    learner = K24QLearner(tiny_config(method="fups", gamma=0.9, **changes), tiny_spec)
    with torch.no_grad():
        for agent, values in ((learner.agent, [1.0, 2, 3, 4]), (learner.target_agent, [40.0, 30, 20, 10])):
            head = agent.layers["fc4"]
            head.weight.zero_()
            head.bias.copy_(torch.tensor([values]))
    return learner


def test_learner_bootstraps_from_the_last_observation_of_a_truncated_episode(tiny_config, tiny_spec, random_episodes):
    episodes = random_episodes(n=1)
    episodes.avail_actions.fill_(True)
    episodes.terminated.zero_()  # a time limit ends it
    metrics = constant_learner(tiny_config, tiny_spec).update(episodes, 0, log=True)
    bootstrap = 0.9 * 3 * 10.0  # the target's value of the online network's choice
    assert metrics["target_mean"] == pytest.approx(episodes.reward.mean().item() + bootstrap, rel=1e-5)
    taken = (episodes.actions + 1.0).sum(dim=-1).mean().item()
    assert metrics["q_taken_mean"] == pytest.approx(taken)


def test_learner_does_not_bootstrap_from_a_terminated_episode(tiny_config, tiny_spec, random_episodes):
    episodes = random_episodes(n=1)
    episodes.avail_actions.fill_(True)
    episodes.terminated.zero_()
    episodes.terminated[0, -1] = True
    metrics = constant_learner(tiny_config, tiny_spec).update(episodes, 0, log=True)
    bootstrap = 0.9 * 3 * 10.0 * (tiny_spec.episode_limit - 1) / tiny_spec.episode_limit
    assert metrics["target_mean"] == pytest.approx(episodes.reward.mean().item() + bootstrap, rel=1e-5)


def test_learner_takes_the_best_available_action_of_the_next_step(tiny_config, tiny_spec, random_episodes):
    episodes = random_episodes(n=1)
    episodes.avail_actions[..., :] = torch.tensor([True, True, False, False])  # the two best are not available
    episodes.actions.zero_()
    episodes.terminated.zero_()
    metrics = constant_learner(tiny_config, tiny_spec).update(episodes, 0, log=True)
    assert metrics["target_mean"] == pytest.approx(episodes.reward.mean().item() + 0.9 * 3 * 30.0, rel=1e-5)


@pytest.mark.parametrize("td_loss", ["huber", "mse"])
def test_td_loss_by_hand(td_loss, tiny_config, tiny_spec, random_episodes):
    episodes = random_episodes(n=3)
    episodes.avail_actions.fill_(True)
    expected = []
    for b, t in episodes.filled.nonzero().tolist():
        chosen = (episodes.actions[b, t] + 1.0).sum().item()
        bootstrap = 0.0 if episodes.terminated[b, t] else 0.9 * 3 * 10.0
        e = abs(chosen - episodes.reward[b, t].item() - bootstrap)
        expected.append(e * e if td_loss == "mse" else (0.5 * e * e if e < 1 else e - 0.5))
    metrics = constant_learner(tiny_config, tiny_spec, td_loss=td_loss).update(episodes, 0)
    assert metrics["loss_td"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def slow_td_lambda(reward, terminated, filled, next_value, gamma, lambda_):
    """From the definition: the lambda-weighted mean of all n-step returns of one episode."""
    length = int(filled.sum())
    targets = []
    for t in range(length):
        total, weight, discounted, discount = 0.0, 1.0, 0.0, 1.0
        for k in range(t, length):
            discounted += discount * reward[k].item()
            discount *= gamma
            n_step = discounted + discount * next_value[k].item() * (not terminated[k])
            last = k == length - 1
            total += (weight if last else weight * (1 - lambda_)) * n_step
            weight *= lambda_
        targets.append(total)
    return targets


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_td_lambda_equals_the_mean_of_n_step_returns(lambda_):
    lengths, ends = [6, 4, 1], [True, False, True]  # the second stops at a time limit
    t = torch.arange(6).unsqueeze(1)
    filled = t < torch.tensor(lengths)
    terminated = (t == torch.tensor(lengths) - 1) & torch.tensor(ends)
    reward, next_value = torch.randn(6, 3, dtype=torch.float64), torch.randn(1, 6, 3, dtype=torch.float64)
    targets = td_lambda(reward, terminated, filled, next_value, 0.9, lambda_)
    for b, length in enumerate(lengths):
        slow = slow_td_lambda(reward[:, b], terminated[:, b], filled[:, b], next_value[0, :, b], 0.9, lambda_)
        assert targets[0, :length, b].tolist() == pytest.approx(slow)
    if lambda_ == 0:
        torch.testing.assert_close(targets[:, filled], one_step(reward, terminated, next_value, 0.9)[:, filled])
