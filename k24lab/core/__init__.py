"""The method: learnable per-agent 2:4 masks over one shared weight matrix."""
