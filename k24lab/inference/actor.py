"""Acting with a frozen team: on the CPU through the kernels where they are built, else through torch."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.errors import ConfigError, InputError, unknown
from k24lab.inference.freeze import FrozenTeam, Own
from k24lab.marl.agent import Weights, step
from k24lab.marl.targets import greedy_actions
from k24lab.ops import acting, library as kernels
from k24lab.ops.linear import LayerWeights, sparse_layers

BACKENDS = ("auto", "kernel", "columns", "torch")
# With AVX2 `columns` is faster than `kernel` from here on, measured for 1 to 16 masks and hidden sizes 32 to 256. Two
# conditions: games, because it works on vectors of them, and masks * games * hidden size², because each of its calls
# costs some 40 us. With AVX-512 `kernel` has the registers that many games need: it is faster, or at most 6 % slower.
MANY_GAMES, MUCH_WORK = 24, 2_000_000
Apply = Callable[[str, Tensor], Tensor]  # the layer of a name times its input, in new memory


def team_step(
    apply: Apply, x: Float[Tensor, "K B in"], hidden: Float[Tensor, "K B H"]
) -> tuple[Float[Tensor, "K B A"], Float[Tensor, "K B H"]]:
    """One time step of a team in torch: Q-values and the next hidden state. `apply` knows the layers' matrices."""
    gate_x, gate_h = apply("rnn_input", apply("fc1", x).relu_()), apply("rnn_hidden", hidden)
    size = hidden.shape[-1]
    r, z = (gate_x[..., : 2 * size] + gate_h[..., : 2 * size]).sigmoid_().split(size, dim=-1)
    candidate = torch.addcmul(gate_x[..., 2 * size :], r, gate_h[..., 2 * size :]).tanh_()
    after = torch.lerp(candidate, hidden, z)
    return apply("fc4", apply("fc3", apply("fc2", after).relu_()).relu_()), after


def batched(
    matrices: Mapping[str, tuple[Float[Tensor, "Kw out in"], Float[Tensor, "Kb out"]]],
    gains: Mapping[str, Own] | None = None,
) -> Apply:
    """One batched product a layer for all networks; one matrix may serve any number of them. Then gains."""
    transposed = {name: (weight.mT.contiguous(), bias.unsqueeze(1)) for name, (weight, bias) in matrices.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        weight, bias = transposed[name]
        if gains and name in gains:  # agents' rows are those of one product
            return with_gains(F.linear(x.flatten(0, 1), weight[0].T).unflatten(0, x.shape[:2]), gains[name])
        return torch.baddbmm(bias, x, weight.expand(len(x), -1, -1))

    return apply


def with_gains(y: Float[Tensor, "N B out"], own: Own) -> Float[Tensor, "N B out"]:
    """What the agents make of their rows of a common product."""
    gain, own_bias = own
    return torch.addcmul(own_bias.unsqueeze(1), gain.unsqueeze(1), y)


class Actor:
    """Q-values of a team, step by step; it keeps the hidden states of B games. Not for several threads at once.

    Of the backends `kernel` is the CPU kernel for acting (float32), `columns` that of training (with AVX2 faster for
    many games), `torch` uses neither, and `auto` takes what `backend_for` says; kernels that are not built are a
    ConfigError. `sparse=False` lets `kernel` multiply by every weight, to measure what 2:4 itself gains.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> env, actor = k24lab.make_env("rolenav", n_envs=4), k24lab.Actor(k24lab.freeze_run(run))
        >>> now = env.reset(seed=0)
        >>> inputs, avail = (x.transpose(0, 1).contiguous() for x in (now.obs, now.avail_actions))
        >>> actor.actions(inputs, avail).shape  # of each agent in each environment
        torch.Size([3, 4])
    """

    def __init__(self, team: FrozenTeam, backend: str = "auto", sparse: bool = True):
        if backend not in BACKENDS:
            raise ConfigError(unknown("backend", backend, BACKENDS))
        built = kernels.library() is not None
        self._for_many_games = "kernel" if kernels.describe() == "avx512" else "columns"
        if backend in ("kernel", "columns") and not built:
            raise ConfigError(f"backend = {backend!r}, but the CPU kernels are not built; allowed here: auto, torch")
        self.team, self.sparse = team, sparse
        self.backend = backend if built else "torch"
        self._masked = {name for name, layer in team.layers.items() if layer.patterns is not None}
        self._hidden: Tensor | None = None
        self._shape, self._backend = torch.Size(), ""  # of the last step
        self._choices = torch.Size()  # shape of the last step's available actions

    # Each backend has the matrices in a layout of its own, made when it is first needed.
    @cached_property
    def _kernel(self) -> acting.TeamStep:
        common = {name: LayerWeights(*parts) for name, parts in self.team.common().items()}
        kept = self._masked if self.sparse else ()
        return acting.pack_team(common, self.team.n_actions, kept, self.team.gains())

    @cached_property
    def _columns(self) -> Weights:
        weights, n = self.team.weights(), self.team.n_masks  # a packed matrix for each network, also if all have one
        each = {name: weights[name].weight.expand(n, -1, -1).contiguous() for name in self._masked}
        return weights | sparse_layers({name: (weight, weights[name].bias) for name, weight in each.items()})

    @cached_property
    def _torch(self) -> Apply:
        return batched(self.team.common(), self.team.gains())

    def backend_for(self, networks: int, games: int) -> str:
        """What computes one step of this size: kernel, columns or torch."""
        if self.backend != "auto":
            return self.backend
        work = networks * games * self.team.config.hidden_dim**2
        if games < MANY_GAMES or work < MUCH_WORK:
            return "kernel"
        # The kernels are single-threaded.
        return self._for_many_games if torch.get_num_threads() <= kernels.MOST_THREADS else "torch"

    def reset(self) -> None:
        """Forget: the next step is the first of new games."""
        self._hidden, self._choices = None, torch.Size()

    @torch.inference_mode()
    def q_values(self, inputs: Float[Tensor, "K B I"]) -> Float[Tensor, "K B A"]:
        """One time step of B games, for all K masks (agents, or unit types); one network for all may have any K.

        Raises:
            InputError: a ValueError; inputs of another shape, type or device, or for another number of games.
        """
        if self._hidden is None or inputs.shape != self._shape or inputs.dtype != torch.float32 or not inputs.is_cpu:
            self._check(inputs)
            networks, games, _ = inputs.shape
            if self._hidden is not None:
                raise InputError(f"inputs for {games} games, the last step had {self._shape[1]}: reset() first")
            self._hidden, self._shape = self.initial_hidden(networks, games), inputs.shape
            self._backend = self.backend_for(*self._rows(networks, games))
        q_values, self._hidden = self._step(inputs, self._hidden, self._backend)
        return q_values

    def actions(self, inputs: Float[Tensor, "K B I"], avail_actions: Bool[Tensor, "K B A"]) -> Int[Tensor, "K B"]:
        """One time step of B games: the greedy available actions.

        Raises:
            InputError: a ValueError; as `q_values`, or available actions of another shape or type than given above.
        """
        if avail_actions.shape != self._choices or avail_actions.dtype != torch.bool:
            self._check_choices(avail_actions, inputs)
        q_values, self._choices = self.q_values(inputs), avail_actions.shape
        return greedy_actions(q_values, avail_actions)

    def initial_hidden(self, networks: int, games: int) -> Tensor:
        """The first hidden state for `act`: [K, R, H], its H padded for the kernel, or [K, H, R] for columns."""
        networks, games = self._rows(networks, games)
        backend, size = self.backend_for(networks, games), self.team.config.hidden_dim
        if backend == "kernel":
            one = self.team.one_matrix
            return self._kernel.initial_hidden(*(1, networks * games) if one else (networks, games))
        shape = (networks, size, games) if backend == "columns" else (networks, games, size)
        return torch.zeros(shape, dtype=torch.float32, device="cpu")

    def act(self, inputs: Float[Tensor, "K I R"], hidden: Tensor) -> tuple[Float[Tensor, "K A R"], Tensor]:
        """One time step for `k24lab.marl.rollout.collect`, which keeps the hidden state itself."""
        self._check(inputs.mT)
        backend = self.backend_for(*self._rows(len(inputs), inputs.shape[2]))
        q_values, hidden = self._step(inputs.mT, hidden, backend)
        return q_values.mT, hidden

    def _rows(self, networks: int, games: int) -> tuple[int, int]:
        """Networks and rows of each in one step: one network for all treats every agent's games as its rows."""
        return (1, networks * games) if self.team.n_masks == 1 else (networks, games)

    def _step(
        self, inputs: Float[Tensor, "K B I"], hidden: Tensor, backend: str
    ) -> tuple[Float[Tensor, "K B A"], Tensor]:
        one = self.team.n_masks == 1
        x = inputs.reshape(1, -1, inputs.shape[2]) if one else inputs
        if backend == "kernel":
            one = one or self.team.one_matrix  # the rows of all agents, one after the other
            q_values = self._kernel(inputs.reshape(1, -1, inputs.shape[2]) if one else x, hidden)  # in place: hidden
        elif backend == "columns":
            columns, hidden = step(self._columns, x.mT.contiguous(), hidden)
            q_values = columns.mT
        else:
            q_values, hidden = team_step(self._torch, x, hidden)
        return q_values.reshape(*inputs.shape[:2], self.team.n_actions) if one else q_values, hidden

    def _check(self, inputs: Tensor) -> None:
        """The kernels work on addresses: what does not fit would be read past its end."""
        masks, size = self.team.n_masks, self.team.input_dim
        fits = inputs.dim() == 3 and inputs.shape[2] == size and masks in (1, len(inputs))
        if not fits or inputs.dtype != torch.float32 or inputs.device.type != "cpu":
            wanted = f"[{masks if masks > 1 else 'any'}, games, {size}] in float32 on the CPU"
            found = f"{tuple(inputs.shape)} in {str(inputs.dtype).removeprefix('torch.')} on {inputs.device.type}"
            raise InputError(f"inputs {found}, expected {wanted}")

    def _check_choices(self, avail_actions: Tensor, inputs: Tensor) -> None:
        """Refuse available actions that would be broadcast, or that are no truth values."""
        self._check(inputs)
        wanted = (*inputs.shape[:2], self.team.n_actions)
        if avail_actions.shape != wanted or avail_actions.dtype != torch.bool:
            found = f"{tuple(avail_actions.shape)} in {str(avail_actions.dtype).removeprefix('torch.')}"
            raise InputError(f"avail_actions {found}, expected [{', '.join(map(str, wanted))}] in bool")
