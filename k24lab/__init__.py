"""k24lab: per-agent 2:4 masks over shared weights for cooperative multi-agent reinforcement learning."""

__version__ = "0.1.0"
