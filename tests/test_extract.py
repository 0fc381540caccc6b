"""One agent's network out of a masked one."""

import pytest
import torch
from test_convert import M, Recurrent
from torch import nn

from k24lab.core.convert import convert, extract
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.recurrent import MaskedGRU
from k24lab.errors import InputError


def test_each_agents_network_computes_what_its_mask_computes_with_weights_that_are_2_of_4():
    team, x = convert(Recurrent(), M).eval(), torch.randn(M, 4, 7, 5)
    outputs = team(x)
    for m in range(M):
        one = extract(team, m)
        for out, expected in zip(outputs, one(x[m]), strict=True):
            torch.testing.assert_close(out[m], expected)
        assert {type(module) for module in one.modules()} == {type(module) for module in Recurrent().modules()}
        assert one.again is one.heads["policy"] and not one.training
        for name, weight in one.named_parameters():
            if weight.dim() == 2 and weight.shape[1] % 4 == 0:
                assert (weight.unflatten(1, (-1, 4)) != 0).sum(dim=2).eq(2).all(), name
    assert isinstance(team.rnn, MaskedGRU)


def test_a_layer_with_one_mask_gives_it_to_every_agent_and_others_have_no_more_than_theirs():
    network = nn.Sequential(SemiStructuredLinear24(8, 8, 1), SemiStructuredLinear24(8, 4, 2))
    assert torch.equal(extract(network, 1)[0].weight, extract(network, 0)[0].weight)
    assert not torch.equal(extract(network, 1)[1].weight, extract(network, 0)[1].weight)
    for mask in (-1, 2):
        with pytest.raises(InputError, match=rf"mask = {mask}, expected 0 to 1: there are 2 masks"):
            extract(network, mask)
    with pytest.raises(InputError, match=r"Linear has no masked layer"):
        extract(nn.Linear(2, 2), 0)


@pytest.mark.parametrize(("mask", "said"), [(True, "mask = True"), (3, "expected 0 to 2"), (2, "3 and with 2")])
def test_an_agent_that_is_not_there_is_an_error(mask, said):
    layers = nn.ModuleList([SemiStructuredLinear24(8, 4, n_masks) for n_masks in (3, 1, 2)])
    with pytest.raises(InputError, match=said):
        extract(layers, mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_agents_network_is_what_the_sparse_tensor_cores_take():
    team = convert(nn.Linear(128, 128), M).half().cuda().eval()
    one, x = extract(team, 1), torch.randn(64, 128, device="cuda", dtype=torch.half)
    expected = one(x)
    one.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(one.weight.detach()), requires_grad=False)
    torch.testing.assert_close(one(x), expected, rtol=1e-2, atol=1e-2)
