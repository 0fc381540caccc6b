"""A trained team with constant masks: what acts after training, in memory and in one file.

The file (safetensors) holds the shared weights once, three bits per mask and group of four weights, the biases, gains
where agents have some, and where the team comes from. Nothing in it is executed when it is read, and its checksum is
compared.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from k24lab.core.baselines import MagnitudeLinear24
from k24lab.core.gains import Gains
from k24lab.core.layers import SemiStructuredLinear24
from k24lab.core.masks import argmax_masks
from k24lab.core.patterns import N_PATTERNS, masks_from_index, n_groups, ungroup
from k24lab.envs.registry import make_env
from k24lab.errors import ConfigError, RunError, unknown, warn
from k24lab.inference.costs import PATTERN_BITS
from k24lab.inference.packing import pack_patterns, patterns_of, quantise, to_dtype, unpack_patterns
from k24lab.lab import tensorfile
from k24lab.lab.config import Config, stored_config
from k24lab.lab.files import atomic_write
from k24lab.lab.paths import PACKAGE
from k24lab.lab.runs import RunFolder, read_config
from k24lab.marl.agent import RNNAgent
from k24lab.marl.batching import Rows, rows_for
from k24lab.marl.learner import K24QLearner, build_learner
from k24lab.methods import METHODS, get_method
from k24lab.methods.base import LAYERS
from k24lab.ops.linear import LayerWeights

FORMAT = "k24lab-team-1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
TEAMS = PACKAGE / "teams"  # trained teams that come with the package
SIZES = ("obs_dim", "n_agents", "n_masks", "t_env")
Own = tuple[Float[Tensor, "N out"], Float[Tensor, "N out"]]  # what an agent multiplies each output with, and adds to it
MASKED_METHODS = tuple(name for name, method in METHODS.items() if method.masks != "none" and method.pattern == "2:4")


@dataclass(frozen=True)
class FrozenLayer:
    """One layer: weights that all agents share, and which two of each four every mask keeps.

    With gains agent i computes `gain[i] * (W x) + own_bias[i]`, and `bias` is part of that.
    """

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]
    patterns: UInt8[Tensor, "M out G"] | None  # None: a dense layer
    gain: Float[Tensor, "N out"] | None = None
    own_bias: Float[Tensor, "N out"] | None = None

    @property
    def own(self) -> Own | None:
        """Gains and biases of the agents, if they have some."""
        return None if self.gain is None or self.own_bias is None else (self.gain, self.own_bias)

    def masked(self) -> Float[Tensor, "M out in"]:
        """The matrix under each mask; one for all where there are no masks."""
        if self.patterns is None:
            return self.weight.unsqueeze(0)
        grouped = masks_from_index(self.patterns.flatten(1).long(), self.weight)
        return self.weight * ungroup(grouped, *self.weight.shape)

    def folded(self) -> tuple[Float[Tensor, "K out in"], Float[Tensor, "Kb out"]]:
        """Matrix and bias of each mask or agent, gains multiplied in; one for all where nothing differs."""
        if self.own is None:
            return self.masked(), self.bias.unsqueeze(0)
        gain, own_bias = self.own
        return self.masked() * gain.unsqueeze(2), own_bias


@dataclass(frozen=True)
class FrozenTeam:
    """What acts: layers by name, and the configuration that they were trained with."""

    layers: Mapping[str, FrozenLayer]
    config: Config
    obs_dim: int  # of the observation alone, without ids
    n_agents: int
    n_masks: int  # networks that differ: agents, or unit types with mask_per = "type"; 1: one for all
    t_env: int  # env steps that the team was trained for
    dtype: str = "float32"  # of the weights in the file

    @property
    def input_dim(self) -> int:
        """What the network reads: the observation, with agent_id a one-hot index behind it."""
        return self.layers["fc1"].weight.shape[1]

    @property
    def n_actions(self) -> int:
        """Outputs."""
        return self.layers["fc4"].weight.shape[0]

    @property
    def one_matrix(self) -> bool:
        """Whether agents differ in gains alone: their inputs are columns of one product, whose matrix is read once."""
        gains = any(layer.own for layer in self.layers.values())
        return gains and all(layer.patterns is None or len(layer.patterns) == 1 for layer in self.layers.values())

    def rows(self, unit_type: Int[Tensor, "B N"]) -> Rows:
        """Which unit of these episodes is seen through which mask."""
        return rows_for(self.config, unit_type, self.n_masks)

    def folded(self) -> dict[str, tuple[Float[Tensor, "K out in"], Float[Tensor, "Kb out"]]]:
        """Of each layer the matrix and bias of each network, or one for all."""
        return {name: layer.folded() for name, layer in self.layers.items()}

    def common(self) -> dict[str, tuple[Float[Tensor, "K out in"], Float[Tensor, "Kb out"]]]:
        """Of each layer what comes before gains (`gains` has these); without `one_matrix` the same as `folded`."""
        if not self.one_matrix:
            return self.folded()
        zero = {name: layer.bias * (layer.own is None) for name, layer in self.layers.items()}  # part of own_bias
        return {name: (layer.masked(), zero[name].unsqueeze(0)) for name, layer in self.layers.items()}

    def gains(self) -> dict[str, Own]:
        """What comes after `common`, of the layers that have it."""
        return {name: layer.own for name, layer in self.layers.items() if layer.own} if self.one_matrix else {}

    def weights(self) -> dict[str, LayerWeights]:
        """For `k24lab.marl.agent.step`, in float32."""
        return {name: LayerWeights(*parts) for name, parts in self.folded().items()}


def freeze(agent: RNNAgent, config: Config, obs_dim: int, n_agents: int, t_env: int) -> FrozenTeam:
    """The team under its argmax masks; a method or a mask that is not 2:4 is a ConfigError."""
    if config.method not in MASKED_METHODS:
        can = ", ".join(MASKED_METHODS)
        raise ConfigError(f"method = {config.method!r} keeps other weights: only 2:4 networks can be frozen ({can})")
    layers = {}
    masks = dict(zip(agent.masked_layers, argmax_masks(list(agent.masked_layers.values())), strict=True))
    for name, layer in agent.layers.items():
        patterns = None
        if isinstance(layer, SemiStructuredLinear24):
            patterns = patterns_of(masks[name], name)
        elif isinstance(layer, MagnitudeLinear24):
            patterns = patterns_of(layer.mask().unsqueeze(0), name)
        assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
        weight, bias = (p.detach().float().cpu().clone() for p in (layer.weight, layer.bias))  # of the live network
        if patterns is None:  # one dense network for all
            weight, bias = weight[0], bias[0]
        own: tuple[Tensor, ...] = ()
        if name in agent.gains:
            gains = agent.gains[name]
            assert isinstance(gains, Gains)
            own = 1 + gains.gain, layer.bias + gains.bias
        layers[name] = FrozenLayer(weight, bias, patterns, *(x.detach().float().cpu().clone() for x in own))
    each = (x for layer in layers.values() for x in (layer.patterns, layer.gain) if x is not None)
    n_masks = max(map(len, each), default=1)
    return FrozenTeam(layers, config, obs_dim, n_agents, n_masks, t_env)


def freeze_run(folder: Path | str) -> FrozenTeam:
    """The team of a run folder, as its last checkpoint has it.

    A run that acts with drawn masks was never evaluated with the argmax masks that the team has: that is a warning. No
    checkpoint is a RunError, a method whose networks are not 2:4 a ConfigError.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> team = k24lab.freeze_run(run)
        >>> team.n_agents, team.layers["fc2"].patterns.shape  # a pattern for each agent, row and group of four weights
        (3, torch.Size([3, 64, 16]))
    """
    folder = Path(folder)
    learner, config, t_env = load_learner(folder)
    if config.acting_masks == "drawn":
        warn(
            f"{folder.name} was trained and tested with masks drawn at every step (acting_masks = 'drawn'); "
            "the frozen team has its argmax masks, and other returns"
        )
    return freeze(learner.agent, config, learner.spec.obs_dim, learner.spec.n_agents, t_env)


def load_learner(folder: Path) -> tuple[K24QLearner, Config, int]:
    """The learner of a run folder's last checkpoint, on the CPU, its configuration and how many env steps it had."""
    config = read_config(folder)
    state = RunFolder(folder, config).load_checkpoint()
    if state is None:
        imported = (folder / "DONE").exists()  # a run that finished here keeps its last checkpoint
        why = "it was imported, without its network" if imported else "nothing is trained yet"
        raise RunError(f"{folder} has no checkpoint: {why}")
    env = make_env(config.task, 1)
    env.close()
    config = dataclasses.replace(config, device="cpu")
    learner = build_learner(config, env.spec)
    # What is drawn next does not matter, and a generator of a GPU cannot go on here.
    learner.load_state_dict(state["learner"] | {"generator": learner.generator.get_state()})
    return learner, config, state["t_env"]


def save_team(team: FrozenTeam, path: Path | str, dtype: str = "float32") -> None:
    """Write a team, whole or not at all; `dtype` of its weights (int8: a scale for each row), biases in float32.

    Examples:
        >>> import k24lab
        >>> config = k24lab.build_config(task="rolenav", t_max=400, test_episodes=10)  # too short to learn
        >>> run = k24lab.train(config, name="doc", progress=False)
        >>> k24lab.save_team(k24lab.freeze_run(run), run / "team.safetensors", dtype="int8")
        >>> k24lab.load_team(run / "team.safetensors").dtype
        'int8'
    """
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, DTYPES))
    tensors: dict[str, Tensor] = {}
    for name, layer in team.layers.items():
        weight = layer.weight.contiguous()
        if dtype == "int8":
            tensors[f"{name}/weight"], tensors[f"{name}/scale"] = quantise(weight)
        else:
            tensors[f"{name}/weight"] = to_dtype(weight, DTYPES[dtype], name)
        tensors[f"{name}/bias"] = layer.bias
        if layer.patterns is not None:
            tensors[f"{name}/patterns"] = pack_patterns(layer.patterns)
        if layer.own is not None:
            tensors[f"{name}/gain"], tensors[f"{name}/own_bias"] = layer.own
    about = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(team.config)),
        "sizes": json.dumps({key: getattr(team, key) for key in SIZES}),
        "dtype": dtype,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        tensorfile.write(file, about, tensors)


def load_team(file: Path | str) -> FrozenTeam:
    """Read a team from a file, or one that comes with the package by its name: `load_team("rolenav8")`.

    Its weights are float32 again, rounded as the file has them.

    Raises:
        ConfigError: no team has this name.
        RunError: the file is not there, or holds no team.

    Examples:
        >>> import k24lab
        >>> team = k24lab.load_team("rolenav8")
        >>> team.config.task, team.n_agents
        ('rolenav:n_agents=8', 8)
    """
    path = Path(file)
    if not path.suffix and not path.is_file():
        path = TEAMS / f"{file}.safetensors"
        if not path.is_file():
            raise ConfigError(unknown("team", file, [path.stem for path in TEAMS.glob("*.safetensors")]))
    about, tensors = tensorfile.read(path, FORMAT)
    try:
        return _team(about, tensors)
    except Exception as error:  # whatever a forged file leads to
        raise RunError(f"{path} does not hold a team: {type(error).__name__}: {error}") from error


def _team(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> FrozenTeam:
    sizes, dtype, config = json.loads(about["sizes"]), about["dtype"], stored_config(json.loads(about["config"]))
    if set(sizes) != set(SIZES) or any(type(n) is not int or n < 0 for n in sizes.values()):
        raise ValueError(f"sizes {sizes}, expected whole numbers {', '.join(SIZES)}")
    if dtype not in DTYPES or config.method not in MASKED_METHODS:
        raise ValueError(f"dtype {dtype!r} or method {config.method!r} that no team has")
    input_dim = sizes["obs_dim"] + sizes["n_agents"] * config.agent_id
    n_masks = sizes["n_masks"] if get_method(config.method).masks == "each" else 1
    _check(tensors, dtype, (sizes["n_masks"], n_masks), input_dim, config.hidden_dim)
    layers = {}
    for name in LAYERS:
        weight = tensors[f"{name}/weight"].float()
        if dtype == "int8":
            weight = weight * tensors[f"{name}/scale"].unsqueeze(1)
        packed = tensors.get(f"{name}/patterns")
        patterns = None if packed is None else unpack_patterns(packed, len(weight), n_groups(weight.shape[1]))
        if patterns is not None and int(patterns.max()) >= N_PATTERNS:
            raise ValueError(f"layer {name!r} has a pattern {int(patterns.max())}, there are {N_PATTERNS}")
        own = {key: tensors.get(f"{name}/{key}") for key in ("gain", "own_bias")}
        layers[name] = FrozenLayer(weight, tensors[f"{name}/bias"], patterns, **own)
    return FrozenTeam(layers, config, **sizes, dtype=dtype)


def _check(tensors: Mapping[str, Tensor], dtype: str, networks: tuple[int, int], input_dim: int, hidden: int) -> None:
    """Only what `save_team` writes, finite; the kernels would read past the end of layers that do not fit together."""
    outputs = {"rnn_input": 3 * hidden, "rnn_hidden": 3 * hidden, "fc4": len(tensors["fc4/bias"])}
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in LAYERS:
        rows, columns = outputs.get(name, hidden), input_dim if name == "fc1" else hidden
        expected[f"{name}/weight"] = DTYPES[dtype], (rows, columns)
        expected[f"{name}/bias"] = torch.float32, (rows,)
        if dtype == "int8":
            expected[f"{name}/scale"] = torch.float32, (rows,)
        if f"{name}/gain" in tensors:
            expected |= {f"{name}/{key}": (torch.float32, (networks[0], rows)) for key in ("gain", "own_bias")}
        if f"{name}/patterns" in tensors:
            expected[f"{name}/patterns"] = torch.uint8, (networks[1], -(-rows * n_groups(columns) * PATTERN_BITS // 8))
    if wrong := set(tensors) ^ set(expected):
        raise ValueError(f"tensors {sorted(wrong)} are missing or belong to no team")
    for name, (kind, shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != kind or tuple(tensor.shape) != shape or not tensor.float().isfinite().all():
            found = f"{tuple(tensor.shape)} in {tensor.dtype}"
            raise ValueError(f"{name} of shape {found}, expected finite numbers of shape {shape} in {kind}")
