import pytest
import torch

from k24lab.marl.mixers import IndependentMixer, QMIXMixer, VDNMixer, build_mixer

N, T, B, S = 3, 4, 5, 6


@pytest.fixture
def q_and_state():
    return torch.randn(N, T, B, requires_grad=True), torch.randn(T, B, S)


def test_vdn_is_the_sum_over_agents(q_and_state):
    q, state = q_and_state
    torch.testing.assert_close(VDNMixer()(q, state).squeeze(0), q[0] + q[1] + q[2])


def test_independent_learning_leaves_every_agents_value_as_it_is(q_and_state):
    q, state = q_and_state
    assert torch.equal(IndependentMixer()(q, state), q)


def test_qmix_is_monotone_in_the_value_of_every_agent(q_and_state):
    q, state = q_and_state
    for seed in range(20):
        torch.manual_seed(seed)
        mixer = QMIXMixer(N, S, embed_dim=8, hypernet_dim=8)
        state = 3 * torch.randn(T, B, S)
        (grad,) = torch.autograd.grad(mixer(q, state).sum(), q)
        assert (grad >= 0).all() and grad.any()
        more = q.detach().clone()
        more[seed % N] += torch.rand(T, B) * 5
        assert (mixer(more, state) >= mixer(q, state) - 1e-5).all()


def test_qmix_equals_its_formula_one_step_at_a_time(q_and_state):
    q, state = q_and_state
    mixer = QMIXMixer(N, S, embed_dim=8)
    q_tot = mixer(q, state)
    assert q_tot.shape == (1, T, B)
    for t in range(T):
        for b in range(B):
            w1 = mixer.hyper_w1(state[t, b]).abs().reshape(N, 8)
            hidden = torch.nn.functional.elu(q[:, t, b] @ w1 + mixer.hyper_b1(state[t, b]))
            expected = hidden @ mixer.hyper_w2(state[t, b]).abs() + mixer.value(state[t, b])
            torch.testing.assert_close(q_tot[0, t, b], expected.squeeze())


def test_qmix_reads_the_state(q_and_state):
    q, state = q_and_state
    mixer = QMIXMixer(N, S)
    assert not torch.allclose(mixer(q, state), mixer(q, state + 1))


def test_mixers_are_chosen_by_name():
    kinds = {name: type(build_mixer(name, N, S, 8)) for name in ("vdn", "qmix", "none")}
    assert kinds == {"vdn": VDNMixer, "qmix": QMIXMixer, "none": IndependentMixer}
