"""Networks with gains, in the middle of their training."""

import torch

from k24lab.marl.agent import RNNAgent

# Gains on one matrix, beside a dense GRU, in one layer, and on masks of each agent.
WITH_GAINS = (
    {"method": "gains24"},
    {"method": "gains24", "mask_rnn": False},
    {"method": "gains24", "gain_layers": "fc1"},
    {"method": "k24-gains"},
)


def spread_gains(agent: RNNAgent) -> RNNAgent:
    """The same network with gains that differ."""
    with torch.no_grad():
        for parameter in agent.gains.parameters():
            parameter.normal_(std=0.3)
    return agent
