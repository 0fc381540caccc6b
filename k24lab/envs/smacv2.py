"""SMACv2: StarCraft II micromanagement with random teams and positions; one game process an environment."""

import contextlib
import ctypes
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Int

from k24lab.envs.base import EnvSpec, TaskBuilder, VecEnv
from k24lab.envs.global_random import PrivateRandomState, seed_everything
from k24lab.envs.single_env import Row, SingleEnv
from k24lab.envs.worker_processes import vectorize
from k24lab.errors import ConfigError, RunError, unknown

# In the order of the last numbers of an observation. Published weights: the third type of each race is rare.
UNIT_TYPES = {
    "protoss": ("stalker", "zealot", "colossus"),
    "terran": ("marine", "marauder", "medivac"),
    "zerg": ("zergling", "hydralisk", "baneling"),
}
WEIGHTS = (0.45, 0.45, 0.1)
NEVER_ALONE = {"terran": ("medivac",), "zerg": ("baneling",)}  # types that cannot be the whole team
SCENARIOS = ((5, 5), (10, 10), (10, 11), (20, 20), (20, 23))  # published: agents v enemies
SMACV2_TASKS = tuple(f"{race}_{n}v{m}" for race in UNIT_TYPES for n, m in SCENARIOS)
MAP_SIZE = 32
MAP_FILE = Path("Maps/SMAC_Maps/32x32_flat.SC2Map")  # below SC2PATH
PYTHON_PROTOBUF = ("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
INSTALL = (  # without dependencies: the package's own pins cannot be met beside this one's
    "pip install --no-deps pysc2==4.0.0 s2clientprotocol==5.0.17.98310.0 portpicker==1.6.0 "
    "'SMACv2 @ git+https://github.com/oxwhirl/smacv2@577ab5a'"
)


class SMACv2(SingleEnv):
    """One battle at a time, as published: 10gen maps, weighted teams, surrounded or reflected positions.

    - Teams and positions follow from the seed of the reset. The game has random numbers of its own (delays of
      attacks), seeded when it is launched, so on the real game two episodes of one seed begin alike, and can differ
      a little later.
    - Reward: damage and kills, scaled so that 20 is the most that can be had in this episode. The package takes
      the scale from the first episode that a process played, and spoils it when that one is reset twice.
    - Agents are sorted by unit type, then position: that is the order in which the package numbers them.
    - A game that is lost is a RunError; the next reset starts a fresh one.
    """

    def __init__(self, race: str, n_agents: int, n_enemies: int, conic_fov: bool = False, difficulty: int | str = 7):
        """Sizes are at least 1; `difficulty` of the built-in opponent is 1 to 9, or A."""
        if n_agents < 1 or n_enemies < 1:
            raise ConfigError(f"smacv2: n_agents = {n_agents}, n_enemies = {n_enemies}: both must be at least 1")
        if str(difficulty) not in "123456789A":
            raise ConfigError(f"smacv2: difficulty = {difficulty!r} (allowed: 1 to 9, or A)")
        options = {"conic_fov": conic_fov, "difficulty": str(difficulty)}
        self._open = partial(_open, race, n_agents, n_enemies, options)
        self._game: _Game | None = self._open()
        info = self._game.wrapper.get_env_info()
        self.agents = [f"agent_{i}" for i in range(n_agents)]
        self.spec = EnvSpec(
            n_envs=1,
            n_agents=n_agents,
            obs_dims=(int(info["obs_shape"]),) * n_agents,
            n_actions=(int(info["n_actions"]),) * n_agents,
            state_dim=int(info["state_shape"]),
            episode_limit=int(info["episode_limit"]),
            n_unit_types=len(UNIT_TYPES[race]),
            unit_type_names=tuple(UNIT_TYPES[race]),
            has_win=True,
            costly=True,
        )
        self._unit_type = np.zeros(n_agents, np.int64)

    def reset(self, seed: int) -> Row:
        """Start a battle, in the running game if there is one."""
        with self._game_or_none():
            if self._game is None:
                self._game = self._open()
            self._game.reset(seed)
            row = self._game.observe()
        bits = row["obs"][:, -self.spec.n_unit_types :]
        if not ((bits == 0) | (bits == 1)).all() or not (bits.sum(axis=1) == 1).all():
            raise RunError("not every agent's observation ends in its unit type")
        self._unit_type = bits.argmax(axis=1)
        return Row(**row, unit_type=self._unit_type, won=False)

    def step(self, actions: Int[np.ndarray, " N"]) -> Row:
        """Eight game loops (0.36 s of game time)."""
        assert self._game is not None
        with self._game_or_none():
            reward, over, info = self._game.step(actions.tolist())
            row = self._game.observe()
        out_of_time = bool(info.get("episode_limit", False))
        return Row(
            **row,
            unit_type=self._unit_type,
            reward=reward,
            terminated=over and not out_of_time,
            truncated=over and out_of_time,
            won=bool(info["battle_won"]),
        )

    def close(self) -> None:
        """End the game."""
        if self._game is not None:
            self._game.close()
        self._game = None

    @contextlib.contextmanager
    def _game_or_none(self) -> Iterator[None]:
        """After an error, of which the package makes many when it loses the connection, the game is not used again."""
        try:
            yield
        except BaseException:
            self.close()
            raise


class _Game:
    """The package's wrapper with global random generators of its own, and the processes that it has started."""

    def __init__(self, wrapper: Any):
        self.wrapper = wrapper
        self._processes: list[Any] = []  # subprocess.Popen
        self.random = PrivateRandomState()
        wrapper.env.full_restart = _refuse_restart  # what it does when it has lost the connection hides the loss

    def reset(self, seed: int) -> None:
        """A battle whose teams and positions follow from `seed`."""
        sequence = np.random.SeedSequence(seed)
        for generator in _generators(self.wrapper.env_key_to_distribution_map.values()):
            generator.rng = np.random.default_rng(sequence.spawn(1)[0])
        env = self.wrapper.env
        env._seed = seed  # of the game, if this launches it
        with self.random.in_use(), _tie_games(self._processes):
            seed_everything(int(sequence.generate_state(1)[0]))
            self.wrapper.reset()  # returns nothing where it had to try twice
        env._episode_count = 1  # or a reset before the end of the first episode launches a second game
        health = sum(unit.health_max + unit.shield_max for unit in env.enemies.values())
        env.max_reward = env.n_enemies * env.reward_death_value + env.reward_win + health

    def step(self, actions: list[int]) -> tuple[float, bool, dict[str, Any]]:
        """Reward, whether the episode is over, info."""
        with self.random.in_use():
            reward, over, info = self.wrapper.step(actions)
        if "battle_won" not in info:
            raise RunError("the connection to the game is lost")
        return float(reward), bool(over), info

    def observe(self) -> dict[str, Any]:
        """Once a step: it changes what agents remember of their enemies."""
        with self.random.in_use():
            obs = np.stack(self.wrapper.get_obs()).astype(np.float32)
        available = np.array(self.wrapper.get_avail_actions(), bool)
        state = np.asarray(self.wrapper.get_state(), np.float32)
        return {"obs": obs, "state": state, "avail_actions": available, "alive": ~available[:, 0]}  # 0: only the dead

    def close(self) -> None:
        """End the game kindly, then every process that is left."""
        with contextlib.suppress(Exception):
            self.wrapper.close()
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()


def _refuse_restart() -> None:
    raise RunError("the connection to the game is lost")


def _generators(distributions: Any) -> Iterator[Any]:
    """Every object with random numbers of its own, in an order that does not change."""
    for distribution in distributions:
        if hasattr(distribution, "rng"):
            yield distribution
        yield from _generators(part for part in vars(distribution).values() if hasattr(part, "generate"))


def capability_config(race: str, n_agents: int, n_enemies: int) -> dict[str, Any]:
    """The published distributions of teams and positions (Ellis et al. 2023, appendix); the package writes into it."""
    team = {
        "dist_type": "weighted_teams",
        "unit_types": list(UNIT_TYPES[race]),
        "weights": list(WEIGHTS),
        "exception_unit_types": list(NEVER_ALONE.get(race, ())),
        "observe": True,
    }
    positions = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": MAP_SIZE, "map_y": MAP_SIZE}
    return {"n_units": n_agents, "n_enemies": n_enemies, "team_gen": team, "start_positions": positions}


def _open(race: str, n_agents: int, n_enemies: int, options: dict[str, Any]) -> _Game:
    wrapper = _wrapper_class()(
        map_name=f"10gen_{race}",
        capability_config=capability_config(race, n_agents, n_enemies),
        obs_own_pos=True,
        use_unit_ranges=True,
        continuing_episode=True,  # all that it does: info then says when the time limit ended the episode
        **options,
    )
    return _Game(wrapper)


def _wrapper_class() -> Callable[..., Any]:
    """The package's wrapper; raises ConfigError if package or game are not there."""
    os.environ.setdefault(*PYTHON_PROTOBUF)  # the messages were generated for an old protobuf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old packages, and of the old way to make messages
            wrapper: Callable[..., Any] = importlib.import_module("smacv2.env").StarCraftCapabilityEnvWrapper
    except ImportError as error:
        raise ConfigError(f"smacv2 tasks need the package ({error}): {INSTALL}") from error
    except TypeError as error:  # protobuf: descriptors cannot be created directly
        raise ConfigError(f"smacv2 tasks need another protobuf: set {'='.join(PYTHON_PROTOBUF)}") from error
    if missing := next(missing_game_files(), None):
        raise ConfigError(f"smacv2 tasks need StarCraft II: {missing}; see `k24lab doctor smacv2`")
    return wrapper


@contextlib.contextmanager
def _tie_games(started: list[Any]) -> Iterator[None]:
    """Games launched meanwhile end with this process, in whatever way it ends, and are noted in `started`."""
    sc_process: Any = importlib.import_module("pysc2.lib.sc_process")
    launch: Any = subprocess.Popen

    def popen(*args: Any, **kwargs: Any) -> Any:
        process = launch(*args, **kwargs, preexec_fn=partial(_die_with_parent, os.getpid()))
        started.append(process)
        return process

    original = sc_process.subprocess
    sc_process.subprocess = SimpleNamespace(Popen=popen)
    try:
        yield
    finally:
        sc_process.subprocess = original


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, in whatever way (Linux; else nothing)."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent != os.getppid():  # it is gone already
            os._exit(1)


def game_folder() -> Path:
    """Where StarCraft II is looked for."""
    return Path(os.environ.get("SC2PATH") or "~/StarCraftII").expanduser()


def missing_game_files() -> Iterator[str]:
    """What of the game is not there, a sentence each."""
    folder = game_folder()
    if not folder.is_dir():
        yield f"no folder {folder} (set SC2PATH)"
        return
    binaries = list(folder.glob("Versions/Base*/SC2_x64")) + list(folder.glob("Versions/Base*/SC2*.*"))
    if not any(os.access(path, os.X_OK) for path in binaries):
        yield f"no executable {folder}/Versions/Base*/SC2_x64"
    if not (folder / MAP_FILE).is_file():
        yield f"no map {folder / MAP_FILE} (from SMACv2's SMAC_Maps.zip)"


def smacv2_builder(name: str) -> TaskBuilder:
    """The builder of a task: `terran_5v5` and the other published ones, or any race_NvM."""
    match = re.fullmatch(rf"({'|'.join(UNIT_TYPES)})_(\d+)v(\d+)", name)
    if match is None:
        raise ConfigError(unknown("smacv2 task", name, [*SMACV2_TASKS, "<race>_<n>v<m>"]))
    race, n, m = match[1], int(match[2]), int(match[3])

    def build(n_envs: int, workers: int = 0, n_agents: int = n, n_enemies: int = m, **options: Any) -> VecEnv:
        return vectorize(partial(SMACv2, race, n_agents, n_enemies, **options), n_envs, workers)

    parameters = dict(inspect.signature(SMACv2).parameters) | dict(inspect.signature(build).parameters)
    return TaskBuilder(build, {key: p for key, p in parameters.items() if key not in ("race", "options")})
