"""The running mean of activations, which is part of the scores of masks."""

import torch

from k24lab.core.layers import EMAActivationTracker, SemiStructuredLinear24

ONES = torch.ones(2)


def test_first_batch_sets_the_running_mean_and_later_ones_decay():
    tracker = EMAActivationTracker(2, 3, decay=0.9)
    assert (tracker.ema_activation == 1).all()
    first, second = torch.rand(2, 3), torch.rand(2, 3)
    tracker.update(first, ONES)
    torch.testing.assert_close(tracker.ema_activation, first)
    tracker.update(second, ONES)
    torch.testing.assert_close(tracker.ema_activation, 0.9 * first + 0.1 * second)


def test_mask_that_saw_no_input_keeps_its_running_mean():
    tracker = EMAActivationTracker(2, 3, decay=0.9)
    nothing = torch.tensor([1.0, 0.0])
    first, second, third = torch.rand(3, 2, 3)
    tracker.update(first, nothing)
    torch.testing.assert_close(tracker.ema_activation, torch.stack([first[0], torch.ones(3)]))
    tracker.update(second, ONES)  # the first batch of mask 1
    torch.testing.assert_close(tracker.ema_activation[1], second[1])
    before = tracker.ema_activation.clone()
    tracker.update(third, nothing)
    torch.testing.assert_close(tracker.ema_activation[1], before[1])
    torch.testing.assert_close(tracker.ema_activation[0], 0.9 * before[0] + 0.1 * third[0])


def test_shared_running_mean_is_the_mean_over_the_inputs_of_all_masks():
    tracker = EMAActivationTracker(2, 3, decay=0.9, scope="shared")
    first = torch.rand(2, 3)
    tracker.update(first, torch.tensor([6.0, 2.0]))
    torch.testing.assert_close(tracker.ema_activation, 0.75 * first[:1] + 0.25 * first[1:])


def test_running_mean_is_saved_and_loaded_with_the_layer():
    layer, other = (SemiStructuredLinear24(6, 3, n_masks=2) for _ in range(2))
    layer(torch.randn(2, 5, 6))
    other.load_state_dict(layer.state_dict())
    for name, value in layer.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert {"ema_tracker.ema_activation", "ema_tracker.started", "selection_frequency"} <= layer.state_dict().keys()
    x = torch.randn(2, 5, 6)
    torch.manual_seed(3)
    expected = layer(x)
    torch.manual_seed(3)
    assert torch.equal(other(x), expected)
    assert torch.equal(other.ema_tracker.ema_activation, layer.ema_tracker.ema_activation)  # decays, does not restart


def test_softening_moves_part_of_the_way_to_the_mean_of_the_mask():
    tracker = EMAActivationTracker(2, 3)
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 1.0]])
    tracker.update(values, ONES)
    tracker.soften(0.5)
    torch.testing.assert_close(tracker.ema_activation, torch.tensor([[2.0, 2.5, 4.5], [3.5, 3.5, 2.0]]))
