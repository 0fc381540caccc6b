"""The training step: agents, mixers, targets, replay, rollout and learner."""
