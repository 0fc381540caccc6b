"""Frozen teams as ONNX graphs: one 2-D Gemm per matrix, masks folded into constant weights, any batch size.

Folded and constant, so that a compiler for 2:4 (TensorRT with `--sparsity=enable`) sees the zeros in the initializer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from k24lab.errors import ConfigError, unknown
from k24lab.inference.freeze import FrozenTeam
from k24lab.lab.files import atomic_write

OPSET = 17  # onnxruntime since 1.12, TensorRT since 8.6
DTYPES: dict[str, type[np.floating[Any]]] = {"float32": np.float32, "float16": np.float16}


def export_onnx(team: FrozenTeam, path: Path | str, dtype: str = "float32", agent: int | None = None) -> None:
    """Write the graph of one agent (or unit type), or of the whole team.

    Agent: inputs `obs` [batch, inputs] and `hidden` [batch, H], outputs `q_values` [batch, actions] and `next_hidden`.
    Team: the same with the agents as a first axis. All numbers have the given dtype.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError("export to ONNX needs the extra: pip install 'k24lab[onnx]'") from error
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    if agent is not None and not 0 <= agent < team.n_masks:
        raise ConfigError(f"agent = {agent} must be 0 to {team.n_masks - 1}, or None for the whole team")
    model = _Graph(team, DTYPES[dtype]).model(agent)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


class _Graph:
    """Collects nodes and constants of a graph."""

    def __init__(self, team: FrozenTeam, dtype: type[np.floating[Any]]):
        self.team, self.dtype, self.matrices = team, dtype, team.folded()
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def model(self, agent: int | None) -> Any:
        """The graph of one agent, or of all."""
        from onnx import TensorProto, helper, numpy_helper

        if agent is None:
            self._team()
        else:
            self._agent(agent, "obs", "hidden", ["q_values", "next_hidden"])
        kind = TensorProto.FLOAT if self.dtype is np.float32 else TensorProto.FLOAT16
        lead, size = [self.team.n_masks] if agent is None else [], self.team.config.hidden_dim
        widths = {"obs": self.team.input_dim, "hidden": size, "q_values": self.team.n_actions, "next_hidden": size}
        values = [helper.make_tensor_value_info(x, kind, [*lead, "batch", width]) for x, width in widths.items()]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "k24lab_team", values[:2], values[2:], constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="k24lab", opset_imports=opsets, ir_version=8)

    def _team(self) -> None:
        """Each agent on its slice of the inputs."""
        n, axis = self.team.n_masks, self._constant("first_axis", np.array([0]))
        slices = [self._op("Split", [whole], [f"{whole}_{k}" for k in range(n)], axis=0) for whole in ("obs", "hidden")]
        wholes: dict[str, list[str]] = {"q_values": [], "next_hidden": []}
        for k in range(n):
            (obs,), (hidden,) = (self._op("Squeeze", [parts[k], axis]) for parts in slices)
            outputs = [f"{whole}_{k}" for whole in wholes]
            self._agent(k, obs, hidden, outputs, prefix=f"agent{k}_")
            for output, parts in zip(outputs, wholes.values(), strict=True):
                parts += self._op("Unsqueeze", [output, axis])
        for whole, parts in wholes.items():
            self._op("Concat", parts, [whole], axis=0)

    def _agent(self, k: int, obs: str, hidden: str, outputs: Sequence[str], prefix: str = "") -> None:
        """fc1 -> GRU -> fc2 -> fc3 -> fc4 under mask k; `outputs` are the names of Q-values and next hidden state."""

        def linear(name: str, x: str, output: str | None = None) -> str:
            matrix, bias = self.matrices[name]

            def own(kind: str, each: Tensor) -> str:  # what is the same for all agents is one constant
                several = len(each) > 1
                return self._constant(f"{prefix if several else ''}{name}.{kind}", each[k if several else 0].numpy())

            inputs = [x, own("weight", matrix), own("bias", bias)]
            return self._op("Gemm", inputs, [output or prefix + name], transB=1)[0]

        def op(kind: str, *inputs: str, output: str | None = None) -> str:
            return self._op(kind, inputs, [output or f"{prefix}{kind.lower()}_{len(self.nodes)}"])[0]

        def gates(x: str) -> list[str]:
            return self._op("Split", [x], [f"{x}_{gate}" for gate in "rzn"], axis=1)

        x_r, x_z, x_n = gates(linear("rnn_input", op("Relu", linear("fc1", obs))))
        h_r, h_z, h_n = gates(linear("rnn_hidden", hidden))
        r, z = op("Sigmoid", op("Add", x_r, h_r)), op("Sigmoid", op("Add", x_z, h_z))
        n = op("Tanh", op("Add", x_n, op("Mul", r, h_n)))
        after = op("Add", n, op("Mul", z, op("Sub", hidden, n)), output=outputs[1])
        linear("fc4", op("Relu", linear("fc3", op("Relu", linear("fc2", after)))), outputs[0])

    def _op(self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> list[str]:
        """Add a node; returns the names of its outputs, by default one that is numbered."""
        from onnx import helper

        names = list(outputs) or [f"{kind.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"{kind}:{names[0]}", **attributes))
        return names

    def _constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant, once; weights and biases in the dtype of the graph."""
        if value.dtype == np.float32:
            with np.errstate(over="ignore"):
                value, largest = value.astype(self.dtype), np.abs(value).max(initial=0.0)
            if not np.isfinite(value).all():
                kind = np.dtype(self.dtype).name
                raise ConfigError(f"constant {name!r} has numbers that {kind} cannot hold: the largest is {largest:g}")
        self.constants[name] = value
        return name
