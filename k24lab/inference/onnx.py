"""Frozen teams as ONNX graphs: one 2-D Gemm per matrix, masks folded into constant weights, any batch size.

Folded and constant, so that a compiler for 2:4 (TensorRT with `--sparsity=enable`) sees the zeros in the initializer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from k24lab.errors import ConfigError, unknown
from k24lab.inference.freeze import FrozenTeam
from k24lab.inference.packing import check_24
from k24lab.lab.runs import atomic_write

OPSET = 17  # onnxruntime since 1.12, TensorRT since 8.6
DTYPES: dict[str, type[np.floating[Any]]] = {"float32": np.float32, "float16": np.float16}
GATED = ("rnn_input", "rnn_hidden")


def export_onnx(team: FrozenTeam, path: Path, dtype: str = "float32", agent: int | None = None) -> None:
    """Write the graph of one agent (or unit type), or of the whole team.

    Agent: inputs `obs` [batch, inputs] and `hidden` [batch, H], outputs `q_values` [batch, actions] and `next_hidden`.
    Team: the same with the agents as a first axis. All numbers have the given dtype.

    Raises:
        ConfigError: onnx is not installed, an unknown dtype, an agent that the team does not have, or a folded matrix
            that is not 2:4.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


class _Graph:
    """Nodes and constants of a graph in the making."""

    def __init__(self, team: FrozenTeam, dtype: type[np.floating[Any]]):
        self.team, self.dtype = team, dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.folded = {name: layer.folded() for name, layer in team.layers.items()}
        for name, layer in team.layers.items():
            if layer.patterns is not None:
                check_24(self.folded[name], name)

    def model(self, agent: int | None) -> Any:
        """The graph of one agent, or of all."""
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT if self.dtype is np.float32 else TensorProto.FLOAT16
        size, n = self.team.config.hidden_dim, self.team.n_masks
        lead = [] if agent is not None else [n]
        if agent is not None:
            self._agent(agent, "obs", "hidden", "q_values", "next_hidden", prefix="")
        else:
            self._team(n)
        shapes = {"obs": self.team.input_dim, "hidden": size, "q_values": self.team.n_actions, "next_hidden": size}
        values = [helper.make_tensor_value_info(x, kind, [*lead, "batch", width]) for x, width in shapes.items()]
        graph = helper.make_graph(self.nodes, "k24lab_team", values[:2], values[2:], self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="k24lab", opset_imports=opsets, ir_version=8)

    def _team(self, n: int) -> None:
        """Each agent on its slice of the inputs."""
        self._constant("first_axis", np.array([0]))
        for whole in ("obs", "hidden"):
            self._node("Split", [whole], [f"{whole}_{k}_" for k in range(n)], axis=0)
            for k in range(n):
                self._node("Squeeze", [f"{whole}_{k}_", "first_axis"], [f"{whole}_{k}"])
        for k in range(n):
            self._agent(k, f"obs_{k}", f"hidden_{k}", f"q_{k}", f"next_{k}", prefix=f"agent{k}_")
        for part, whole in (("q", "q_values"), ("next", "next_hidden")):
            for k in range(n):
                self._node("Unsqueeze", [f"{part}_{k}", "first_axis"], [f"{part}_{k}_"])
            self._node("Concat", [f"{part}_{k}_" for k in range(n)], [whole], axis=0)

    def _agent(self, k: int, obs: str, hidden: str, q_values: str, after: str, prefix: str) -> None:
        """fc1 -> GRU -> fc2 -> fc3 -> fc4."""

        def named(*names: str) -> Iterator[str]:
            return (f"{prefix}{name}" for name in names)

        x, gate_x, gate_h = named("fc1", "gate_x", "gate_h")
        self._linear("fc1", k, obs, x, prefix, relu=True)
        self._linear("rnn_input", k, x, gate_x, prefix)
        self._linear("rnn_hidden", k, hidden, gate_h, prefix)
        parts = {side: list(named(*(f"{side}_{gate}" for gate in "rzn"))) for side in ("x", "h")}
        self._node("Split", [gate_x], parts["x"], axis=1)
        self._node("Split", [gate_h], parts["h"], axis=1)
        r, z, sums = named("r", "z", "sums")
        for gate, a, b in ((r, parts["x"][0], parts["h"][0]), (z, parts["x"][1], parts["h"][1])):
            self._node("Add", [a, b], [f"{gate}_sum"])
            self._node("Sigmoid", [f"{gate}_sum"], [gate])
        reset, candidate, change, kept = named("reset", "n", "change", "kept")
        self._node("Mul", [r, parts["h"][2]], [reset])
        self._node("Add", [parts["x"][2], reset], [sums])
        self._node("Tanh", [sums], [candidate])
        self._node("Sub", [hidden, candidate], [change])
        self._node("Mul", [z, change], [kept])
        self._node("Add", [candidate, kept], [after])
        a, b = named("fc2", "fc3")
        self._linear("fc2", k, after, a, prefix, relu=True)
        self._linear("fc3", k, a, b, prefix, relu=True)
        self._linear("fc4", k, b, q_values, prefix)

    def _linear(self, name: str, k: int, x: str, y: str, prefix: str, relu: bool = False) -> None:
        """A Gemm with the folded matrix of mask k; dense layers are one constant for all."""
        matrices = self.folded[name]
        own = len(matrices) > 1
        weight = f"{prefix if own else ''}{name}.weight"
        self._constant(weight, matrices[k if own else 0].numpy().astype(self.dtype))
        self._constant(f"{name}.bias", self.team.layers[name].bias.numpy().astype(self.dtype))
        out = f"{y}_sum" if relu else y
        self._node("Gemm", [x, weight, f"{name}.bias"], [out], transB=1)
        if relu:
            self._node("Relu", [out], [y])

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}:{outputs[0]}", **attributes))

    def _constant(self, name: str, value: np.ndarray) -> None:
        from onnx import numpy_helper

        if all(name != constant.name for constant in self.constants):
            self.constants.append(numpy_helper.from_array(value, name))
