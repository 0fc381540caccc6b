"""What is compared: works, the sides of each, which are measured together, and the pairs that the table shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.driver import Side

SHAPE = (3, 18, 5, 64, 25)  # agents, observation, actions, hidden size, episode length
SHARED, K24 = "one shared network", "K-2:4"
TWO_CORES: dict[str, Any] = {"pipeline": True, "n_threads": 2}  # what lets one run use both


@dataclass(frozen=True)
class Work:
    """Something that all sides do; `pairs` are names of sides, ours before theirs."""

    name: str
    text: str
    sides: Mapping[str, Side]
    pairs: tuple[tuple[str, str], ...]
    cores: int = 1
    seconds: float = 0.5  # of a piece


def training(method: str, settings: Mapping[str, Any], peer: str | None = None) -> Side:
    """A training loop of the package; `peer`: in the Python of that peer, whose environments it needs."""
    return Side("benchmarks.training:run", {"method": method, **settings}, peer)


def update(method: str, shape: tuple[int, ...] = SHAPE, **settings: Any) -> Side:
    """Learner updates of the package."""
    return Side("benchmarks.updates:update", {"method": method, "shape": shape, **settings})


def _navigation() -> Work:
    task = {"task": "vmas/navigation", "n_envs": 32, "updates_per_rollout": 4, "batch_size": 32, "hidden_dim": 64}
    size = {"n_envs": 32, "steps": 100, "updates": 4, "hidden_dim": 64}
    sides = {SHARED: training("fups", task), K24: training("k24", task)}
    for model in ("gru", "mlp"):
        name = f"BenchMARL, VDN, its {model.upper()}"
        sides[name] = Side("benchmarks.benchmarl_loop:run", {"model": model, **size}, "benchmarl")
    theirs = list(sides)[2:]
    return Work(
        "navigation",
        "training on VMAS navigation: 32 environments, hidden size 64, 4 updates of 32 episodes a rollout",
        sides,
        tuple((ours, other) for other in theirs for ours in (SHARED, K24)),
        seconds=1.0,
    )


def _beside_jaxmarl(
    name: str,
    text: str,
    task: Mapping[str, Any],
    mixer: str,
    theirs: Mapping[str, Any],
    seconds: float,
    peer: str | None = None,
) -> Work:
    """JaxMARL's loops use both cores; ours as by default, on one of them, and on both.

    `peer`: in whose Python ours runs, if it needs JaxMARL's environments.
    """
    sides = {
        own + where: training(method, {**task, **more}, peer)
        for where, more in {"": {}, " on both cores": TWO_CORES}.items()
        for own, method in ((SHARED, "fups"), (K24, "k24"))
    }
    other = f"JaxMARL, {mixer.upper()}"
    pairs = tuple((own, other) for own in sides)
    settings = {"baseline": f"{mixer}_rnn", "BUFFER_SIZE": 1000, **theirs}
    sides[other] = Side("benchmarks.jaxmarl_loop:run", settings, "jaxmarl")
    return Work(name, f"training on {text}", sides, pairs, cores=2, seconds=seconds)


def _spread() -> Work:
    text = "simple_spread: 8 environments, hidden size 64, 2 updates of 32 episodes a rollout"
    task = {"task": "mpe/simple_spread", "mixer": "qmix", "n_envs": 8, "updates_per_rollout": 2, "hidden_dim": 64}
    sizes = {"NUM_ENVS": 8, "NUM_EPOCHS": 2, "MIXER_HYPERNET_HIDDEN_DIM": 64, "HIDDEN_SIZE": 64}
    theirs = {"config": "ql_rnn_mpe", "rollouts": 60, **sizes}
    return _beside_jaxmarl("spread", text, task, "qmix", theirs, seconds=1.0)


def _smax() -> Work:
    text = "SMAX smacv2_5_units: 32 environments, hidden size 128, 4 updates of 32 episodes a rollout"
    task = {"task": "smax/smacv2_5_units", "n_envs": 32, "updates_per_rollout": 4, "hidden_dim": 128}
    sizes = {"MAP_NAME": "smacv2_5_units", "NUM_ENVS": 32, "NUM_EPOCHS": 4, "HIDDEN_SIZE": 128}
    theirs = {"config": "ql_rnn_smax", "rollouts": 8, **sizes}
    return _beside_jaxmarl("smax", text, task, "vdn", theirs, seconds=3.0, peer="jaxmarl")


def _pymarl() -> Work:
    epymarl, original, ours = "epymarl, recurrent", "the original Kaleidoscope", "Kaleidoscope's masks"
    sides = {SHARED: update("fups", mixer="qmix"), K24: update("k24", mixer="qmix")}
    sides[ours] = update("kaleidoscope", mixer="qmix")
    target, settings = "benchmarks.pymarl_update:update", {"source": "src", "config": "qmix", "shape": SHAPE}
    sides[epymarl] = Side(target, settings, "epymarl")
    settings = {**settings, "source": "Kalei_MPE/src", "config": "Kalei_qmix_rnn_1R3"}
    sides[original] = Side(target, settings, "kaleidoscope")
    text = "an update with QMIX: 3 agents, observations of 18, hidden size 64, 32 episodes of 25 steps"
    return Work("update", text, sides, ((SHARED, epymarl), (K24, epymarl), (ours, original)))


def _acting(games: int) -> Work:
    own = f"K-2:4's actor, {games} {'game' if games == 1 else 'games'}"
    names = {own: "k24lab", "numpy": "numpy", "PyTorch, traced and frozen": "torch", "onnxruntime": "onnxruntime"}
    size = {"n_agents": 8, "hidden_dim": 64, "games": games}
    sides = {
        name: Side(
            "benchmarks.acting:act", {"library": library, **size}, "onnxruntime" if library == "onnxruntime" else None
        )
        for name, library in names.items()
    }
    text = "acting with a mask for each agent: 8 agents, hidden size 64"
    return Work(f"acting{games}", text, sides, tuple((own, name) for name in sides if name != own), seconds=0.2)


def _size(hidden_dim: int) -> Work:
    shape = (3, 18, 5, hidden_dim, 25)
    ours = {f"{name}, hidden size {hidden_dim}": name for name in (SHARED, K24)}
    shared, masked = ours
    peak = "large matrix products of as much work"
    sides = {shared: update("fups", shape), masked: update("k24", shape)}
    sides[peak] = Side("benchmarks.updates:matrix_products", {"shape": shape})
    text = "an update with VDN: 3 agents, observations of 18, 32 episodes of 25 steps"
    seconds = 1.0 if hidden_dim > 128 else 0.5
    return Work(f"hidden{hidden_dim}", text, sides, ((shared, peak), (masked, shared)), seconds=seconds)


def _team(n_agents: int) -> Work:
    shape = (n_agents, 18, 5, 64, 25)
    shared, masked = (f"{name}, {n_agents} agents" for name in (SHARED, K24))
    sides = {shared: update("fups", shape), masked: update("k24", shape)}
    text = "an update with VDN: observations of 18, hidden size 64, 32 episodes of 25 steps"
    return Work(f"agents{n_agents}", text, sides, ((masked, shared),))


def _both_cores(name: str, text: str, peer: str | None = None, **task: Any) -> Work:
    settings: dict[str, dict[str, Any]] = {
        "`n_threads = 2`": {"n_threads": 2},
        "`pipeline`": {"pipeline": True},
        "both": TWO_CORES,
    }
    alone = "one thread"
    sides = {alone: training("k24", task, peer)}
    sides |= {own: training("k24", {**task, **more}, peer) for own, more in settings.items()}
    pairs = tuple((own, alone) for own in settings)
    # Long pieces: episodes that are collected while another side works are a gift to the next piece.
    return Work(f"cores-{name}", f"training K-2:4 on {text}", sides, pairs, cores=2, seconds=4.0)


WORKS = (
    _navigation(),
    _spread(),
    _smax(),
    _pymarl(),
    *map(_acting, (1, 32)),
    *map(_size, (64, 128, 256, 512)),
    *map(_team, (10, 30, 100)),
    _both_cores("navigation", "VMAS navigation, 16 updates a rollout", task="vmas/navigation", updates_per_rollout=16),
    _both_cores("rolenav", "RoleNav with 8 agents", task="rolenav:n_agents=8"),
    _both_cores(
        "spread", "simple_spread, QMIX", task="mpe/simple_spread", mixer="qmix", n_envs=8, updates_per_rollout=8
    ),
    _both_cores(
        "smax",
        "SMAX smacv2_5_units, 16 updates a rollout",
        "jaxmarl",
        task="smax/smacv2_5_units",
        hidden_dim=128,
        updates_per_rollout=16,
    ),
)
