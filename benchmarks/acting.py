"""Steps of a team whose agents have 2:4 masks of their own: the package's actor, and what a user would write instead.

All compute the same Q-values from the same weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.worker import Meter
from k24lab.bench.inference import N_ACTIONS, OBS_DIM
from k24lab.inference.actor import Actor, batched, team_step
from k24lab.inference.freeze import FrozenTeam, freeze
from k24lab.lab.config import build_config
from k24lab.marl.agent import build_agent

Step = Callable[[Any, Any], tuple[Any, Any]]  # inputs [K, B, I] and hidden state [K, B, H] -> Q-values, next state


def random_team(n_agents: int, hidden_dim: int) -> FrozenTeam:
    """A team of random weights with a fixed 2:4 mask for each agent."""
    torch.manual_seed(0)
    config = build_config(method="random24", hidden_dim=hidden_dim)
    return freeze(build_agent(config, OBS_DIM, N_ACTIONS, n_agents), config, OBS_DIM, n_agents, t_env=0)


def numpy_step(team: FrozenTeam) -> Step:
    """All agents in one product for each layer."""
    layers = {
        name: (weight.mT.contiguous().numpy(), bias.unsqueeze(1).numpy())
        for name, (weight, bias) in team.folded().items()
    }
    size = team.config.hidden_dim

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = layers[name]
        y = np.matmul(x, weight)
        y += bias
        return y

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0, out=x)

    def step(x: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gate_x, gate_h = linear("rnn_input", relu(linear("fc1", x))), linear("rnn_hidden", hidden)
        gates = gate_x[..., : 2 * size] + gate_h[..., : 2 * size]
        gates = 1 / (1 + np.exp(-gates))
        candidate = np.tanh(gate_x[..., 2 * size :] + gates[..., :size] * gate_h[..., 2 * size :])
        after = candidate + gates[..., size:] * (hidden - candidate)
        return linear("fc4", relu(linear("fc3", relu(linear("fc2", after))))), after

    return step


def torch_step(team: FrozenTeam) -> Step:
    """The same in PyTorch, traced and frozen."""
    apply = batched(team.folded())

    class Team(torch.nn.Module):
        def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return team_step(apply, x, hidden)

    example = (torch.zeros(team.n_masks, 1, OBS_DIM), torch.zeros(team.n_masks, 1, team.config.hidden_dim))
    return torch.jit.freeze(torch.jit.trace(Team().eval(), example))


def onnx_step(team: FrozenTeam) -> Step:
    """The package's ONNX graph of the team in onnxruntime."""
    import onnxruntime

    from k24lab.inference.onnx import export_onnx

    path = Path("team.onnx")
    export_onnx(team, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def step(x: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tuple(session.run(None, dict(zip(names, (x, hidden), strict=True))))

    return step


STEPS = {"numpy": numpy_step, "torch": torch_step, "onnxruntime": onnx_step}


@torch.inference_mode()
def act(meter: Meter, library: str, n_agents: int, hidden_dim: int, games: int, calls: int = 50) -> None:
    """Step after step."""
    team = random_team(n_agents, hidden_dim)
    x, hidden = torch.randn(n_agents, games, OBS_DIM), torch.zeros(n_agents, games, hidden_dim)
    if library == "k24lab":
        actor = Actor(team)
        while True:
            for _ in range(calls):
                actor.q_values(x)
            meter(calls)
    step = STEPS[library](team)
    inputs, state = (x, hidden) if library == "torch" else (x.numpy(), hidden.numpy())
    while True:
        for _ in range(calls):
            _, state = step(inputs, state)
        meter(calls)
