"""Acting with a frozen team: on the CPU through the kernels where they are built, else through torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from k24lab import kernels
from k24lab.deploy.team import FrozenTeam
from k24lab.errors import ConfigError, unknown
from k24lab.kernels import acting
from k24lab.marl.agents import step

BACKENDS = ("auto", "kernel", "torch")


class Actor:
    """Q-values of a team, step by step; it keeps the hidden states of B games.

    Args:
        team: what acts.
        backend: `kernel` is the CPU kernel (float32), `torch` does without, `auto` takes the kernel where it can.
        sparse: False lets the kernel multiply by every weight, dropped ones too: what 2:4 itself is worth.

    Raises:
        ConfigError: an unknown backend, or kernels that are not built.
    """

    def __init__(self, team: FrozenTeam, backend: str = "auto", sparse: bool = True):
        if backend not in BACKENDS:
            raise ConfigError(unknown("backend", backend, BACKENDS))
        built = kernels.library() is not None
        if backend == "kernel" and not built:
            raise ConfigError("backend = 'kernel', but the CPU kernels are not built; allowed here: auto, torch")
        self.team = team
        self._hidden: Tensor | None = None
        self._weights = team.weights()
        self._kernel = None if backend == "torch" or not built else self._build(sparse)

    def _build(self, sparse: bool) -> acting.TeamStep:
        layers = {
            name: acting.PackedLinear(
                layer.weight,
                layer.bias,
                acting.GATES.get(name, 1),
                sparse=sparse and self.team.layers[name].patterns is not None,
            )
            for name, layer in self._weights.items()
        }
        return acting.TeamStep(layers, self.team.n_actions)

    def reset(self) -> None:
        """Forget: the next step is the first of new games."""
        self._hidden = None

    @torch.inference_mode()
    def q_values(self, inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B A"]:
        """One time step of B games, for all K masks (agents, or unit types); one network for all may have any K."""
        k, batch = inputs.shape[:2]
        if self._kernel is not None:
            if self._hidden is None:
                self._hidden = self._kernel.initial_hidden(k, batch)
            return self._kernel(inputs, self._hidden)
        if self._hidden is None:
            self._hidden = inputs.new_zeros(k, self.team.config.hidden_dim, batch)
        q_values, self._hidden = step(self._weights, inputs.mT.contiguous(), self._hidden)
        return q_values.mT

    def actions(self, inputs: Float[Tensor, "K B I"], avail_actions: Tensor) -> Int[Tensor, "K B"]:
        """The greedy available actions."""
        return self.q_values(inputs).masked_fill(~avail_actions, -torch.inf).argmax(dim=-1)
