"""One environment in numpy lifted to E of them, stepped one after the other; k24lab/envs/workers.py: in processes."""

import contextlib
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from k24lab.envs.base import NO_SCENE, EnvSpec, Step, VecEnv, check_actions
from k24lab.envs.scene import Scene
from k24lab.errors import ConfigError, K24Error, RunError, told, warn

TIMEOUT = 600.0  # seconds that environments may take for a reset or a step together
ALIGNMENT = 64  # bytes, a cache line: no two fields of the rows share one


@dataclass(frozen=True)
class Row:
    """What one environment says after a reset or a step: `Step` without its first axis, in numpy."""

    obs: Float[np.ndarray, "N O"]  # padded with zeros to the largest agent's
    state: Float[np.ndarray, " S"]
    avail_actions: Bool[np.ndarray, "N A"]  # at least one per agent
    alive: Bool[np.ndarray, " N"]
    reward: float = 0.0  # of the team
    terminated: bool = False
    truncated: bool = False
    unit_type: Int[np.ndarray, " N"] | None = None  # where spec.n_unit_types > 0
    won: bool | None = None  # where spec.has_win


class SingleEnv(ABC):
    """One cooperative environment.

    All that is random in an episode follows from the seed of its reset and from its actions. It need not care
    about the end: no step follows it before the next reset, and no action that is not available is asked for.
    An environment that starts processes ties them to its own with `k24lab.envs.workers.die_with_parent`.
    """

    spec: EnvSpec  # n_envs is not read
    agents: Sequence[str]  # names, for errors

    @abstractmethod
    def reset(self, seed: int) -> Row:
        """Start an episode."""

    @abstractmethod
    def step(self, actions: Int[np.ndarray, " N"]) -> Row:
        """One env step."""

    def scene(self) -> Scene:
        """What the world looks like now.

        Raises:
            ConfigError: it cannot be drawn.
        """
        raise ConfigError(f"{type(self).__name__} {NO_SCENE}")

    def action_name(self, agent: int, action: int) -> str:
        """What an action of an agent is; the default is its number."""
        return str(action)

    def close(self) -> None:
        """Free what it holds, also after an error; the default holds nothing."""
        return


def lift(make: Callable[[], SingleEnv], n_envs: int, workers: int = 0) -> VecEnv:
    """`n_envs` environments in this process (workers = 0) or in worker processes: the numbers are the same."""
    from k24lab.envs.workers import SubprocessVector

    return SubprocessVector(make, n_envs, workers) if workers else SerialVector(make, n_envs)


class Vector(VecEnv):
    """What both vectors share: rows that a step is copied from, and the check of actions."""

    def __init__(self, sample: SingleEnv, n_envs: int, allocate: Callable[[int], Any]):
        if n_envs < 1:
            raise ConfigError(f"n_envs = {n_envs}: must be at least 1")
        self.spec = replace(sample.spec, n_envs=n_envs)
        self._agents = list(sample.agents)
        self._memory = allocate(memory_size(self.spec))
        self._rows = views(self.spec, self._memory)
        self._actions = self._rows.pop("actions")
        self._running = False  # false before the first reset and after an error: only a reset helps
        self._last: dict[str, np.ndarray] = {}  # the arrays of the last Step

    def reset(self, seed: int) -> Step:
        """Start E new episodes; environment e is reset with `SeedSequence([seed, e])`."""
        self._running = False
        self._reset(seed)
        self._running = True
        return self._step()

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One step of every environment that has not ended.

        Raises:
            ValueError: an action that is not available, or no reset before.
            RunError: an environment raised, or was lost and could not be brought back.
        """
        if not self._running:
            raise ValueError("step before the first reset, or after an error")
        chosen = actions.cpu().numpy()
        ended = self._rows["terminated"] | self._rows["truncated"]
        check_actions(chosen, self._rows["avail_actions"], ended, self._agents)
        self._running = False
        self._actions[:] = chosen
        self._advance()
        self._running = True
        return self._step()

    @abstractmethod
    def _reset(self, seed: int) -> None: ...

    @abstractmethod
    def _advance(self) -> None: ...

    def _step(self) -> Step:
        """The rows as tensors of their own: a step that is kept must not change with the next one."""
        self._last = {name: rows.copy() for name, rows in self._rows.items()}
        return Step(**{name: torch.from_numpy(array) for name, array in self._last.items()})


class SerialVector(Vector):
    """E environments, stepped one after the other in this process.

    One that hangs for `timeout` seconds, in Python or in a call of the system, is a RunError; inside a library's own
    code it can only be stopped in a worker process.
    """

    def __init__(self, make: Callable[[], SingleEnv], n_envs: int, timeout: float = TIMEOUT):
        self._timeout = timeout
        self.envs = [make()]
        try:
            super().__init__(self.envs[0], n_envs, bytearray)
            self.envs.extend(make() for _ in range(n_envs - 1))
        except BaseException:
            close_all(self.envs)  # nobody else knows them
            raise
        self._lane = Lane(self.envs, self._rows, first=0)

    def scene(self, e: int) -> Scene:
        """What environment e says of itself."""
        return self.envs[e].scene()

    def action_name(self, agent: int, action: int) -> str:
        """What the first environment calls it."""
        return self.envs[0].action_name(agent, action)

    def close(self) -> None:
        """Close every environment."""
        self._running = False
        self._lane.close()

    def _reset(self, seed: int) -> None:
        with _alarm(self._timeout):
            self._lane.reset(seed)

    def _advance(self) -> None:
        with _alarm(self._timeout):
            self._lane.step(self._actions)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds, in the main thread of a POSIX system, unless its alarm is someone else's."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(*_: object) -> None:
        raise TimeoutError(f"no answer for {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Lane:
    """Some environments and their rows: all of a SerialVector's, or those of one worker."""

    def __init__(self, envs: Sequence[SingleEnv], rows: dict[str, np.ndarray], first: int):
        """`rows` are those of these environments alone; `first` is the index of the first of them among all E."""
        self._envs, self._rows, self._first = envs, rows, first

    def reset(self, seed: int) -> None:
        """Start all episodes.

        Raises:
            RunError: an environment raised.
        """
        for i, env in enumerate(self._envs):
            own = np.random.SeedSequence([seed, self._first + i]).generate_state(1)[0]
            self._write(i, env.reset, int(own))

    def step(self, actions: Int[np.ndarray, "E N"]) -> None:
        """One step of those that have not ended; the rows of the others stay, with zero reward."""
        self._rows["reward"][:] = 0
        ended = self._rows["terminated"] | self._rows["truncated"]
        for i in np.flatnonzero(~ended).tolist():
            self._write(i, self._envs[i].step, actions[i])

    def close(self) -> None:
        """Close every environment, whatever the others do."""
        close_all(self._envs)

    def _write(self, i: int, act: Callable[[Any], Row], argument: Any) -> None:
        try:
            row = act(argument)
            for name, rows in self._rows.items():
                value = getattr(row, name)
                if np.shape(value) != rows.shape[1:]:  # numpy would repeat a smaller one
                    raise ValueError(f"{name} has shape {np.shape(value)} instead of {rows.shape[1:]}")
                rows[i] = value
        except KeyboardInterrupt:
            raise
        except K24Error as error:  # a sentence already
            raise RunError(f"environment {self._first + i}: {error}") from error.__cause__
        except BaseException as error:  # an environment's sys.exit does not end a run as if it had succeeded
            raise RunError(f"environment {self._first + i}: {told(error)}") from error


def close_all(envs: Iterable[SingleEnv]) -> None:
    """Close all of them; one that raises is named in a warning, since what was done with it has its outcome already."""
    for env in envs:
        try:
            env.close()
        except KeyboardInterrupt:
            raise
        except K24Error as error:
            warn(f"an environment could not be closed: {error}")
        except BaseException as error:
            warn(f"an environment could not be closed: {told(error)}")


def layout(spec: EnvSpec) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of every array that a vector keeps: the fields of Step that the world has, and the actions."""
    n_envs, n_agents = spec.n_envs, spec.n_agents
    arrays: dict[str, tuple[tuple[int, ...], type]] = {
        "actions": ((n_envs, n_agents), np.int64),
        "obs": ((n_envs, n_agents, spec.obs_dim), np.float32),
        "state": ((n_envs, spec.state_dim), np.float32),
        "avail_actions": ((n_envs, n_agents, spec.action_dim), np.bool_),
        "reward": ((n_envs,), np.float32),
        "terminated": ((n_envs,), np.bool_),
        "truncated": ((n_envs,), np.bool_),
        "alive": ((n_envs, n_agents), np.bool_),
    }
    if spec.n_unit_types:
        arrays["unit_type"] = ((n_envs, n_agents), np.int64)
    if spec.has_win:
        arrays["won"] = ((n_envs,), np.bool_)
    return arrays


def memory_size(spec: EnvSpec) -> int:
    """Bytes that `views` needs."""
    return sum(_aligned(shape, dtype) for shape, dtype in layout(spec).values())


def views(spec: EnvSpec, memory: Any) -> dict[str, np.ndarray]:
    """The arrays of `layout`, by name, in one buffer."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout(spec).items():
        arrays[name] = np.ndarray(shape, dtype, memory, offset)
        offset += _aligned(shape, dtype)
    return arrays


def _aligned(shape: tuple[int, ...], dtype: type) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
