"""Environments in worker processes: a vector that uses more than one core."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from k24lab.envs.base import EnvSpec, VecEnv
from k24lab.envs.single_env import SingleEnv
from k24lab.envs.vector_env import EnvGroup, SerialVector, Vector, close_all, row_type
from k24lab.errors import ConfigError, K24Error, RunError

log = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds that a worker may take for a reset or a step of all its environments
START_TIMEOUT = 300.0  # seconds that a worker may take to load what it needs and build its environments
CLOSE_TIMEOUT = 5.0  # seconds that a worker gets to close its environments
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CONTEXT = multiprocessing.get_context("forkserver")  # torch is loaded once, and no state of this process is forked


class SubprocessVector(Vector):
    """E environments in worker processes of one thread each, which write into memory that they share with this one.

    - An environment that raises ends in one RunError with its traceback.
    - A worker that dies or does not answer in time is replaced: its environments are reset with the same seed and take
      the same actions. If they then return the same numbers the episodes go on, else it is a RunError.
    - Workers start at the first reset, and end with `close`, with this object, and with this process, however it
      ends (but for one that never lets another Python thread run). After an error a reset starts them again.
    """

    def __init__(
        self, make: Callable[[], SingleEnv], n_envs: int, workers: int, timeout: float = TIMEOUT, max_restarts: int = 3
    ):
        """`make` builds one environment, here for the sizes and in the workers, so it must be picklable.

        No more workers are started than there are environments. `timeout` is the seconds that one may take for a reset
        or a step of all its environments, `max_restarts` those of all workers together between two resets.
        """
        if workers < 1:
            raise ConfigError(f"workers = {workers}: must be at least 1")
        sample = make()
        try:
            super().__init__(sample, n_envs)
        finally:
            close_all([sample])
        memory = CONTEXT.RawArray("B", n_envs * row_type(self.spec).itemsize)
        self._rows = np.frombuffer(memory, row_type(self.spec))
        shares = np.array_split(np.arange(n_envs), min(workers, n_envs))
        self._workers = [
            _Worker(i, slice(int(share[0]), int(share[-1]) + 1), (make, self.spec, memory))
            for i, share in enumerate(shares)
        ]
        self._timeout, self._max_restarts = timeout, max_restarts
        self._seed = 0  # of the last reset
        self._n_restarts = 0  # since the last reset
        self._history: list[Sequence[bytes]] = []  # since the last reset, its own included: a command for each worker
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def close(self) -> None:
        """End every worker."""
        self._running = False
        _stop(self._workers)

    def _start(self, seed: int) -> None:
        self._seed, self._n_restarts, self._history = seed, 0, []
        self._exchange([b"reset %d" % seed] * len(self._workers))

    def _advance(self, actions: Int[np.ndarray, "E N"]) -> None:
        self._exchange([b"step " + actions[worker.share].tobytes() for worker in self._workers])

    def _exchange(self, commands: Sequence[bytes]) -> None:
        """Give each worker its command, and wait until all have done theirs; those that are lost are replaced."""
        self._history.append(commands)
        before, lost = self._rows.copy(), {}
        try:
            for worker, command in zip(self._workers, commands, strict=True):
                worker.send(command)
            for worker in self._workers:
                try:
                    worker.receive(self._timeout)
                except _Lost as error:
                    lost[worker] = error
            for worker, reason in lost.items():
                self._replace(worker, reason, before)
        except BaseException:
            _stop(self._workers)  # also after an interrupt: an answer that was not read must not meet the next reset
            raise

    def _replace(self, worker: "_Worker", reason: "_Lost", before: np.ndarray) -> None:
        """Play the episodes of a lost worker in a new one, up to and with the last command."""
        if self._n_restarts >= self._max_restarts:
            since = f"after {self._n_restarts} restarts of workers since the last reset"
            raise RunError(f"{reason}, {since} (allowed: {self._max_restarts})") from reason
        self._n_restarts += 1
        restart = f"restart {self._n_restarts} of {self._max_restarts} with seed {self._seed}"
        log.warning("%s; %s, then %d env steps again", reason, restart, len(self._history) - 1)
        worker.stop(patience=0.0)
        try:
            for t, commands in enumerate(self._history):
                if 0 < t == len(self._history) - 1:
                    self._check_replayed(worker, before)
                worker.send(commands[worker.index])
                worker.receive(self._timeout)
        except _Lost as error:
            self._replace(worker, error, before)

    def _check_replayed(self, worker: "_Worker", before: np.ndarray) -> None:
        """Raise RunError if rows that the caller has seen have changed."""
        for name in before.dtype.names or ():
            if before[name][worker.share].tobytes() != self._rows[name][worker.share].tobytes():
                raise RunError(
                    f"{worker} was lost, and the same seed ({self._seed}) and actions now give another {name}: "
                    "the episode cannot go on; resume the run from its last checkpoint"
                )


class _Lost(Exception):
    """A worker has died or does not answer."""


class Child:
    """A process that gets commands through a pipe, as its parent sees it.

    Args:
        target: what it does: called with `arguments`, its end of the pipe and this process's environment variables.
        arguments: of the target.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]):
        self._target, self._arguments = target, arguments
        self.process: Any = None  # multiprocessing.Process of CONTEXT
        self.connection: Any = None  # multiprocessing.Connection

    def start(self) -> None:
        """Start the process."""
        CONTEXT.set_forkserver_preload([self._target.__module__])  # loading it is paid once for all children
        self.connection, theirs = CONTEXT.Pipe()
        with theirs, _one_thread():  # the first start also starts the server, which all children are forked from
            arguments = (*self._arguments, theirs, dict(os.environ))
            self.process = CONTEXT.Process(target=self._target, args=arguments, name="k24lab", daemon=True)
            self.process.start()

    def send(self, command: bytes) -> None:
        """Give it a command, after a start if need be; who waits for the answer notices if it is dead."""
        if self.process is None:
            self.start()
        with contextlib.suppress(OSError):
            self.connection.send_bytes(command)

    def exit_code(self) -> int | None:
        """Of a process whose end of the pipe is closed."""
        self.process.join(CLOSE_TIMEOUT)  # the pipe ends a moment before the process
        return self.process.exitcode

    def stop(self, patience: float) -> None:
        """End the process: kindly for `patience` seconds, then by force."""
        self.close_connection()
        if self.process is not None:
            self.process.join(patience)
            self.process.kill()
            self.process.join()
            self.process.close()
        self.process = None

    def close_connection(self) -> None:
        """Let the process notice, close its environments and end."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class _Worker(Child):
    """One worker process."""

    def __init__(self, index: int, share: slice, work: tuple[Any, ...]):
        super().__init__(_work, (*work, share))
        self.index, self.share = index, share
        self._has_started = False  # it has said that its environments are built

    def __str__(self) -> str:
        return f"worker {self.index} (environments {self.share.start} to {self.share.stop - 1})"

    def start(self) -> None:
        """Start the process, which first of all builds its environments."""
        super().start()
        self._has_started = False

    def receive(self, timeout: float) -> None:
        """Wait until the last command is done; RunError: its environments raised, _Lost: it has died or is silent."""
        if not self._has_started:
            self._wait(START_TIMEOUT)
            self._has_started = True
        self._wait(timeout)

    def _wait(self, timeout: float) -> None:
        try:
            if not self.connection.poll(timeout):
                raise _Lost(f"{self} has not answered for {timeout:g} s")
            problem = self.connection.recv_bytes().decode()
        except (EOFError, OSError) as error:
            raise _Lost(f"{self} has died (exit code {self.exit_code()})") from error
        if problem:
            raise RunError(f"worker {self.index}: {problem}")


def _stop(workers: Sequence[_Worker]) -> None:
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for worker in workers:
        worker.close_connection()  # all at once, so that they close side by side
    for worker in workers:
        worker.stop(max(0.0, deadline - time.monotonic()))


def _work(
    make: Callable[[], SingleEnv],
    spec: EnvSpec,
    memory: Any,
    share: slice,
    connection: Connection,
    environ: dict[str, str],
) -> None:
    """What a worker does: commands in; out comes nothing, or the traceback of an exception."""
    serve_parent(environ)
    torch.set_num_threads(1)
    envs: list[SingleEnv] = []
    try:
        connection.send_bytes(_answer(lambda: envs.extend(make() for _ in range(share.start, share.stop))))
        group = EnvGroup(envs, np.frombuffer(memory, row_type(spec))[share], share.start)
        while True:
            command, _, argument = connection.recv_bytes().partition(b" ")
            if command == b"reset":
                connection.send_bytes(_answer(group.reset, int(argument)))
            else:
                connection.send_bytes(_answer(group.step, np.frombuffer(argument, np.int64).reshape(len(envs), -1)))
    except (EOFError, OSError):  # the parent has closed its end, or is gone
        pass
    finally:
        close_all(envs)


def _answer(act: Callable[..., None], *arguments: Any) -> bytes:
    """Nothing if all went well, else what went wrong."""
    try:
        act(*arguments)
    except BaseException as error:  # what sys.exit raises would end the worker without a word
        ours = isinstance(error, K24Error) and error.__cause__ is None  # no code of the environment to be looked at
        return str(error if ours else f"{error}\n\n{traceback.format_exc()}").encode()
    return b""


def serve_parent(environ: dict[str, str]) -> None:
    """Make this process a child whose parent alone decides when it ends, with the parent's environment variables."""
    threading.Thread(target=_end_with_main, daemon=True).start()
    os.environ.update(environ)  # the server that this process was forked from may have an older one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal


def _end_with_main() -> None:
    """End this process, even in the middle of a step, when the one that wanted it is gone."""
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Numerical libraries read their number of threads from the environment when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def vectorize(make: Callable[[], SingleEnv], n_envs: int, workers: int = 0) -> VecEnv:
    """`n_envs` environments in this process (workers = 0) or in worker processes: the numbers are the same."""
    return SubprocessVector(make, n_envs, workers) if workers else SerialVector(make, n_envs)
