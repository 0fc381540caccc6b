from dataclasses import fields

import pytest
import torch

from k24lab.marl.replay import EpisodeBatch, ReplayBuffer, empty_batch


def marked(spec, marks, length=6) -> EpisodeBatch:
    """Episodes whose rewards and observations carry a mark."""
    batch = empty_batch(spec, len(marks), with_state=True)
    for row, mark in enumerate(marks):
        batch.reward[row], batch.obs[row], batch.state[row] = mark, mark, mark
        batch.actions[row] = mark
        batch.filled[row, :length] = True
    return batch


def marks_of(batch) -> list[int]:
    return [int(m) for m in batch.reward[:, 0]]


def test_buffer_is_a_ring_that_overwrites_the_oldest(tiny_spec):
    buffer = ReplayBuffer(tiny_spec, 5, with_state=True)
    for marks in ([0, 1], [2, 3]):
        buffer.add(marked(tiny_spec, marks))
    assert (buffer.size, buffer.next) == (4, 4)
    buffer.add(marked(tiny_spec, [4, 5]))
    assert (buffer.size, buffer.next) == (5, 1)
    assert marks_of(buffer.episodes) == [5, 1, 2, 3, 4]


def test_sample_draws_different_episodes_uniformly(tiny_spec):
    buffer = ReplayBuffer(tiny_spec, 8, with_state=True)
    buffer.add(marked(tiny_spec, range(6)))  # the buffer is not full
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(8)
    for _ in range(600):
        marks = marks_of(buffer.sample(3, generator))
        assert len(set(marks)) == 3
        counts[marks] += 1
    assert not counts[6:].any()
    assert (counts[:6] - 300).abs().max() < 5 * (600 * 0.25) ** 0.5


def test_all_fields_of_an_episode_stay_together(tiny_spec):
    buffer = ReplayBuffer(tiny_spec, 8, with_state=True)
    buffer.add(marked(tiny_spec, range(8)))
    batch = buffer.sample(8, torch.Generator().manual_seed(1))
    for row, mark in enumerate(marks_of(batch)):
        assert (
            (batch.obs[row] == mark).all() and (batch.state[row] == mark).all() and (batch.actions[row] == mark).all()
        )


def test_sample_is_cut_to_its_longest_episode_with_the_last_observation(tiny_spec):
    buffer = ReplayBuffer(tiny_spec, 4, with_state=True)
    buffer.add(marked(tiny_spec, [0], length=2))
    buffer.add(marked(tiny_spec, [1], length=4))
    batch = buffer.sample(2, torch.Generator().manual_seed(0))
    assert batch.reward.shape == (2, 4) and batch.filled.sum() == 6
    assert batch.obs.shape[1] == batch.state.shape[1] == batch.avail_actions.shape[1] == batch.alive.shape[1] == 5
    assert batch.actions.shape[1] == batch.terminated.shape[1] == 4


def test_the_longest_episode_comes_first(tiny_spec, random_episodes):
    buffer = ReplayBuffer(tiny_spec, 16, with_state=True)
    buffer.add(random_episodes(n=16))
    lengths = buffer.sample(16, torch.Generator().manual_seed(0)).filled.sum(dim=1).tolist()
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 1


def test_sample_is_a_copy(tiny_spec):
    buffer = ReplayBuffer(tiny_spec, 2, with_state=True)
    buffer.add(marked(tiny_spec, [1, 2]))
    buffer.sample(2, torch.Generator()).obs.zero_()
    assert buffer.episodes.obs.any()


def test_buffer_goes_on_where_it_was_saved(tiny_spec):
    buffer, other = (ReplayBuffer(tiny_spec, 5, with_state=True) for _ in range(2))
    buffer.add(marked(tiny_spec, [0, 1, 2]))
    state = buffer.state_dict()
    assert len(state["episodes"]["obs"]) == 3  # the empty rest is not stored
    other.load_state_dict(state)
    for b in (buffer, other):
        b.add(marked(tiny_spec, [3, 4, 5]))
    assert (other.size, other.next) == (buffer.size, buffer.next)
    for field in fields(EpisodeBatch):
        assert torch.equal(getattr(other.episodes, field.name), getattr(buffer.episodes, field.name))
    a, b = (x.sample(4, torch.Generator().manual_seed(2)) for x in (buffer, other))
    assert marks_of(a) == marks_of(b)


@pytest.mark.parametrize("with_state", [True, False])
def test_state_is_stored_only_where_it_is_read(with_state, tiny_spec):
    assert empty_batch(tiny_spec, 2, with_state).state.shape == (2, 7, 5 if with_state else 0)


def test_returns_and_steps_count_filled_steps_only(tiny_spec):
    batch = marked(tiny_spec, [2, 3], length=4)
    assert batch.returns.tolist() == [8, 12] and batch.n_steps == 8
