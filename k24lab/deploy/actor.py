"""Acting with a frozen team: on the CPU through the kernels where they are built, else through torch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab import kernels
from k24lab.deploy.team import FrozenTeam
from k24lab.errors import ConfigError, unknown
from k24lab.kernels import acting, ops
from k24lab.marl.agents import step
from k24lab.marl.targets import greedy_actions

BACKENDS = ("auto", "kernel", "torch")
KERNEL_ROWS = 64  # from more games on, kernels that take many columns at once are as fast (`k24lab bench inference`)


class Actor:
    """Q-values of a team, step by step; it keeps the hidden states of B games.

    Args:
        team: what acts.
        backend: `kernel` is the CPU kernel for acting (float32), `torch` does without kernels, `auto` takes what is
            fastest for the number of games, of what is built.
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
        self._games: tuple[int, ...] = ()
        self._weights = team.weights()
        masked = {name for name, layer in team.layers.items() if layer.patterns is not None}
        self._kernel = None
        if built and backend != "torch":
            self._kernel = acting.pack_team(self._weights, team.n_actions, masked if sparse else ())
        self._kernel_rows = KERNEL_ROWS if backend == "auto" else float("inf")
        if built and backend == "auto":
            for name in masked:
                layer = self._weights[name]
                if len(layer.weight) > 1:  # one matrix for all cannot be packed
                    self._weights[name] = layer._replace(packed=ops.pack(layer.weight))

    def reset(self) -> None:
        """Forget: the next step is the first of new games."""
        self._hidden = None

    @torch.inference_mode()
    def q_values(self, inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B A"]:
        """One time step of B games, for all K masks (agents, or unit types); one network for all may have any K.

        Raises:
            ValueError: inputs of another shape or dtype than the team takes, or of another number of games than the
                last step (`reset` begins new games).
        """
        self._check(inputs)
        if self._hidden is None:
            self._hidden, self._games = self.initial_hidden(*inputs.shape[:2]), tuple(inputs.shape[:2])
        q_values, self._hidden = self._step(inputs, self._hidden)
        return q_values

    def actions(self, inputs: Float[Tensor, "K B I"], avail_actions: Bool[Tensor, "K B A"]) -> Int[Tensor, "K B"]:
        """One time step of B games: the greedy available actions."""
        return greedy_actions(self.q_values(inputs), avail_actions)

    def initial_hidden(self, n_networks: int, rows: int) -> Tensor:
        """The first hidden state for `act`."""
        if self._kernel is not None and rows <= self._kernel_rows:
            return self._kernel.initial_hidden(n_networks, rows)
        return torch.zeros(n_networks, self.team.config.hidden_dim, rows)

    def act(self, inputs: Float[Tensor, "K I R"], hidden: Tensor) -> tuple[Float[Tensor, "K A R"], Tensor]:
        """One time step for `k24lab.marl.rollout.collect`, which keeps the hidden state itself."""
        q_values, hidden = self._step(inputs.mT, hidden)
        return q_values.mT, hidden

    def _check(self, inputs: Tensor) -> None:
        """The kernel works on addresses: what does not fit would be read past its end."""
        masks = self.team.n_masks
        if inputs.dim() != 3 or inputs.dtype != torch.float32 or inputs.shape[2] != self.team.input_dim:
            wanted = f"[{masks if masks > 1 else 'networks'}, games, {self.team.input_dim}] in float32"
            raise ValueError(f"inputs {tuple(inputs.shape)} in {str(inputs.dtype)[6:]}, expected {wanted}")
        if masks > 1 and len(inputs) != masks:
            raise ValueError(f"inputs for {len(inputs)} masks, the team has {masks}")
        if self._hidden is not None and tuple(inputs.shape[:2]) != self._games:
            raise ValueError(f"inputs for {inputs.shape[1]} games, the last step had {self._games[1]}: reset() first")

    def _step(self, inputs: Float[Tensor, "K B I"], hidden: Tensor) -> tuple[Float[Tensor, "K B A"], Tensor]:
        if self._kernel is not None and inputs.shape[1] <= self._kernel_rows:
            return self._kernel(inputs, hidden), hidden  # changed in place
        q_values, hidden = step(self._weights, inputs.mT.contiguous(), hidden)
        return q_values.mT, hidden
