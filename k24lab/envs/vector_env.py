"""E single environments as one `VecEnv`, stepped one after the other; `worker_processes` has them in processes."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from k24lab.envs.base import EnvSpec, Step, VecEnv, check_actions
from k24lab.envs.scene import Scene
from k24lab.envs.single_env import Row, SingleEnv
from k24lab.errors import K24Error, RunError, told, warn


class Vector(VecEnv):
    """What both vectors share: the check of actions, and steps made of rows."""

    _rows: np.ndarray  # [E] of `row_type`: what the environments returned last

    def __init__(self, sample: SingleEnv, n_envs: int):
        self.spec = replace(sample.spec, n_envs=n_envs)
        self._agents = list(sample.agents)
        self._running = False  # false before the first reset and after an error: only a reset helps

    def reset(self, seed: int) -> Step:
        """Start E new episodes; environment e is reset with `SeedSequence([seed, e])`."""
        self._running = False
        self._start(seed)
        self._running = True
        return self._step()

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """One step of every environment that has not ended. RunError: one raised, or its process is lost."""
        if not self._running:
            raise ValueError("step before the first reset, or after an error")
        chosen = actions.cpu().long()
        ended = torch.from_numpy(self._rows["terminated"] | self._rows["truncated"])
        check_actions(chosen, torch.from_numpy(self._rows["avail_actions"]), ended, self._agents)
        self._running = False
        self._advance(chosen.numpy())
        self._running = True
        return self._step()

    @abstractmethod
    def _start(self, seed: int) -> None: ...

    @abstractmethod
    def _advance(self, actions: Int[np.ndarray, "E N"]) -> None: ...

    def _step(self) -> Step:
        """The rows as tensors of their own: a step that is kept must not change with the next one."""
        return Step(**{name: torch.from_numpy(self._rows[name].copy()) for name in self._rows.dtype.names or ()})


class SerialVector(Vector):
    """E environments, stepped one after the other in this process. Only in a worker process can one that hangs end."""

    def __init__(self, make: Callable[[], SingleEnv], n_envs: int):
        self.envs = [make()]
        try:
            super().__init__(self.envs[0], n_envs)
            self.envs.extend(make() for _ in range(n_envs - 1))
        except BaseException:
            close_all(self.envs)  # nobody else knows them
            raise
        self._rows = np.zeros(n_envs, row_type(self.spec))
        self._group = EnvGroup(self.envs, self._rows)

    def scene(self, e: int) -> Scene:
        """What environment e looks like now."""
        return self.envs[e].scene()

    def action_name(self, agent: int, action: int) -> str:
        """What the first environment calls it."""
        return self.envs[0].action_name(agent, action)

    def close(self) -> None:
        """Close every environment."""
        self._running = False
        close_all(self.envs)

    def _start(self, seed: int) -> None:
        self._group.reset(seed)

    def _advance(self, actions: Int[np.ndarray, "E N"]) -> None:
        self._group.step(actions)


class EnvGroup:
    """Some environments and their rows: all of a SerialVector's, or those of one worker."""

    def __init__(self, envs: Sequence[SingleEnv], rows: np.ndarray, first: int = 0):
        """`rows` are those of these environments alone; `first` is the index of the first of them among all E."""
        self._envs, self._first = envs, first
        self._rows = {name: rows[name] for name in rows.dtype.names or ()}

    def reset(self, seed: int) -> None:
        """Start all episodes; raises RunError where an environment raises."""
        for i, env in enumerate(self._envs):
            own = np.random.SeedSequence([seed, self._first + i]).generate_state(1)[0]
            self._write(i, env.reset, int(own))

    def step(self, actions: Int[np.ndarray, "E N"]) -> None:
        """One step of those that have not ended; the rows of the others stay, with zero reward."""
        self._rows["reward"][:] = 0
        ended = self._rows["terminated"] | self._rows["truncated"]
        for i in np.flatnonzero(~ended).tolist():
            self._write(i, self._envs[i].step, actions[i])

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


def row_type(spec: EnvSpec) -> np.dtype:
    """What is kept of one environment: the fields of Step that the task has."""
    n_agents = spec.n_agents
    fields: list[Any] = [
        ("obs", np.float32, (n_agents, spec.obs_dim)),
        ("state", np.float32, (spec.state_dim,)),
        ("avail_actions", np.bool_, (n_agents, spec.action_dim)),
        ("reward", np.float32),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
        ("alive", np.bool_, (n_agents,)),
    ]
    fields += [("unit_type", np.int64, (n_agents,))] if spec.n_unit_types else []
    fields += [("won", np.bool_)] if spec.has_win else []
    return np.dtype(fields, align=True)


def close_all(things: Iterable[Any]) -> None:
    """Close all of them; one that raises is named in a warning, since the run's outcome is decided already."""
    for thing in things:
        try:
            thing.close()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = error if isinstance(error, K24Error) else told(error)
            warn(f"{type(thing).__name__} could not be closed: {said}")
