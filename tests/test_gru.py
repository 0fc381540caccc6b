import pytest
import torch

from k24lab.ops.gru import batched_gru


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_batched_gru_equals_torchs_cell_of_each_agent_in_value_and_gradient(steps, batch):
    n_agents, size, inputs = 3, 4, 6
    cells = [torch.nn.GRUCell(inputs, size, dtype=torch.float64) for _ in range(n_agents)]
    x = torch.randn(n_agents, inputs, steps, batch, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(n_agents, size, batch, dtype=torch.float64, requires_grad=True)
    coefficient = torch.randn(n_agents, size, steps, batch, dtype=torch.float64)

    slow = []
    for k, cell in enumerate(cells):
        h, out = hidden[k].T, []
        for t in range(steps):
            h = cell(x[k, :, t].T, h)
            out.append(h.T)
        slow.append(torch.stack(out, dim=1))
    slow = torch.stack(slow)

    def stacked(name):
        return torch.stack([getattr(cell, name) for cell in cells])

    gate_x = torch.einsum("nitb,ngi->ngtb", x, stacked("weight_ih")) + stacked("bias_ih")[..., None, None]
    fast = batched_gru(gate_x, hidden, stacked("weight_hh"), stacked("bias_hh"))
    torch.testing.assert_close(fast, slow)

    wanted = [x, hidden, *(parameter for cell in cells for parameter in cell.parameters())]
    expected = torch.autograd.grad((slow * coefficient).sum(), wanted)
    found = torch.autograd.grad((fast * coefficient).sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


def test_gradients_agree_with_finite_differences():
    def leaf(*shape):
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(batched_gru, (leaf(2, 9, 3, 2), leaf(2, 3, 2), leaf(2, 9, 3), leaf(2, 9)))


def test_backward_twice_through_a_kept_graph_gives_the_same_gradient():
    gate_x = torch.randn(2, 6, 4, 3, requires_grad=True)
    out = batched_gru(gate_x, torch.zeros(2, 2, 3), torch.randn(2, 6, 2), torch.randn(2, 6)).sum()
    (first,) = torch.autograd.grad(out, gate_x, retain_graph=True)
    (second,) = torch.autograd.grad(out, gate_x)
    assert torch.equal(first, second)
