"""The controller that their runners act through: the team's network under its argmax masks."""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl.batches import TheirBatch, observations, types_at_reset
from k24lab.integrations.epymarl.settings import env_spec, read_settings
from k24lab.marl.agent import RNNAgent, Weights, build_agent, step
from k24lab.marl.batching import Rows, rows_for
from k24lab.marl.rollout import agent_inputs


def k24_agent(input_shape: int, args: SimpleNamespace) -> RNNAgent:
    """The network of the whole team, for the registry of agents: `k24`, and `k24_type` with a mask per unit type."""
    settings = read_settings(args)
    n_masks = settings.n_unit_types if settings.config.per_type else args.n_agents
    return build_agent(settings.config, input_shape, args.n_actions, n_masks).to(torch.device(args.device))


class K24MAC:
    """Acts for all agents; the masks are those of the largest scores, computed once an episode.

    The learner unrolls whole episodes itself, under the masks of its update: `forward` is for acting and has no
    gradient. `groups` is not used: all are agents.
    """

    def __init__(self, scheme: dict[str, Any], groups: dict[str, int], args: SimpleNamespace):
        self.args, self.n_agents = args, args.n_agents
        self.settings = read_settings(args)
        self.spec = env_spec(scheme, args, self.settings)
        config = self.settings.config
        if config.acting_masks != "argmax":
            raise ConfigError(f"acting_masks = {config.acting_masks!r}: this controller acts with 'argmax' masks alone")
        self.n_masks = self.spec.n_unit_types if config.per_type else self.spec.n_agents
        input_shape = self.spec.obs_dim + (self.n_agents if config.agent_id else 0)
        agent = importlib.import_module("modules.agents").REGISTRY[args.agent](input_shape, args)
        if not isinstance(agent, RNNAgent):
            raise ConfigError(f"mac = 'k24_mac' needs agent = 'k24' or 'k24_type', not {args.agent!r}")
        self.agent = agent
        selectors = importlib.import_module("components.action_selectors").REGISTRY
        self.action_selector = selectors[args.action_selector](args)
        self.init_hidden(args.batch_size_run)

    def init_hidden(self, batch_size: int) -> None:
        """A new episode: what the network has learned since takes effect now."""
        self._policy: tuple[Rows, Weights] | None = None
        self.hidden_states: Tensor | None = None  # [K, H, R]

    @torch.no_grad()
    def select_actions(
        self, ep_batch: TheirBatch, t_ep: int, t_env: int, bs: Any = slice(None), test_mode: bool = False
    ) -> Int[Tensor, "b N"]:
        """Actions of the episodes `bs` at time step t_ep, by the checkout's own selector."""
        q_values = self.forward(ep_batch, t_ep, test_mode=test_mode)
        avail = ep_batch["avail_actions"][:, t_ep]
        return self.action_selector.select_action(q_values[bs], avail[bs], t_env, test_mode=test_mode)

    @torch.no_grad()
    def forward(self, ep_batch: TheirBatch, t: int, test_mode: bool = False) -> Float[Tensor, "B N A"]:
        """Q-values at time step t; to be called for the steps of an episode one after another."""
        if self._policy is None:
            self._policy = self._begin(ep_batch)
        rows, weights = self._policy
        obs = observations(ep_batch, t, t + 1, self.settings.last_action)
        x = rows.split(agent_inputs(obs, self.settings.config.agent_id)).squeeze(2)  # [K, I, R]
        if self.hidden_states is None:
            self.hidden_states = self.agent.initial_hidden(len(x), x.shape[2])
        q_values, self.hidden_states = step(weights, x, self.hidden_states)
        return rows.merge(q_values.unsqueeze(2)).squeeze(1).transpose(0, 1)

    def _begin(self, batch: TheirBatch) -> tuple[Rows, Weights]:
        """Which unit acts through which mask in these episodes, and the weights of all."""
        if self.settings.unit_types is not None:
            self.settings.unit_types.check(batch["obs"][:, 0])
        unit_type = types_at_reset(batch, self.settings.unit_types)
        return rows_for(self.settings.config, unit_type, self.n_masks), self.agent.argmax_weights()
