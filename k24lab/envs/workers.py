"""Environments in worker processes that share memory with this one: a vector that uses more than one core."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from k24lab.envs.base import EnvSpec
from k24lab.envs.vector import TIMEOUT, Lane, SingleEnv, Vector, close_all, views
from k24lab.errors import ConfigError, K24Error, RunError

log = logging.getLogger(__name__)

START_TIMEOUT = 300.0  # seconds that a worker may take to load what it needs and build its environments
PATIENCE = 5.0  # seconds that a worker gets to close its environments
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
CONTEXT = multiprocessing.get_context("forkserver")  # torch is loaded once, and no state of this process is forked
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class SubprocessVector(Vector):
    """E environments in worker processes of one thread each; only a few bytes a step go through pipes.

    - An environment that raises ends in one RunError with its traceback.
    - A worker that dies, or does not answer in time, is started again: its environments are reset with the same seed
      and take the same actions. If they then show the same numbers the episode goes on, else it is a RunError.
    - Workers start at the first reset, and end with `close`, with this object, and with this process, however it
      ends (but for one that never lets another Python thread run).
    """

    def __init__(
        self,
        make: Callable[[], SingleEnv],
        n_envs: int,
        workers: int,
        timeout: float | None = TIMEOUT,
        max_restarts: int = 3,
    ):
        """`make` is called in this process, for the sizes, and in the workers, so it must be picklable.

        Args:
            make: builds one environment.
            n_envs: E.
            workers: processes; no more are started than there are environments.
            timeout: seconds that a worker may take for a reset or a step of all its environments; None: any.
            max_restarts: of all workers together, between two resets.

        Raises:
            ConfigError: sizes below 1, or a `make` that cannot be sent to a process.
        """
        if workers < 1:
            raise ConfigError(f"workers = {workers}: must be at least 1")
        try:
            pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(f"{make!r} cannot be sent to a worker process: {error}") from error
        sample = make()
        try:
            super().__init__(sample, n_envs, lambda size: CONTEXT.RawArray("B", size))
        finally:
            close_all([sample])
        shares = np.array_split(np.arange(n_envs), min(workers, n_envs))
        self._workers = [
            _Worker(i, slice(int(share[0]), int(share[-1]) + 1), (make, self.spec, self._memory), timeout)
            for i, share in enumerate(shares)
        ]
        self._max_restarts = max_restarts
        self._seed = self._restarts = 0
        self._history: list[np.ndarray] = []  # actions [E, N] since the reset
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def close(self) -> None:
        """End every worker."""
        self._running = False
        _stop(self._workers)

    def _reset(self, seed: int) -> None:
        self._seed, self._restarts, self._history = seed, 0, []
        self._exchange(b"reset %d" % seed)

    def _advance(self) -> None:
        self._history.append(self._actions.copy())
        self._exchange(b"step")

    def _exchange(self, command: bytes) -> None:
        """One command to all workers; those that are lost are brought back."""
        try:
            idle = [worker for worker in self._workers if not worker.started]
            for worker in idle:
                worker.start()
            lost = _each(_Worker.wait_for_start, idle) | _each(lambda worker: worker.send(command), self._workers)
            lost |= _each(_Worker.receive, [worker for worker in self._workers if worker not in lost])
            for worker, reason in lost.items():
                self._revive(worker, reason)
        except BaseException:
            _stop(self._workers)  # also after an interrupt: an answer that was not read must not meet the next reset
            raise

    def _revive(self, worker: "_Worker", reason: "_Lost") -> None:
        while True:
            if self._restarts >= self._max_restarts:
                raise RunError(
                    f"{worker} {reason}, after {self._restarts} restarts of workers since the last reset "
                    f"(allowed: {self._max_restarts})"
                ) from reason
            self._restarts += 1
            log.warning(
                "%s %s; restart %d of %d with seed %d, then %d env steps again",
                *(worker, reason, self._restarts, self._max_restarts, self._seed, len(self._history)),
            )
            worker.stop(patience=0.0)
            try:
                self._replay(worker)
            except _Lost as error:
                reason = error
            else:
                return

    def _replay(self, worker: "_Worker") -> None:
        """The episodes of one worker again, up to and with the exchange in which it was lost."""
        worker.start()
        worker.wait_for_start()
        worker.call(b"reset %d" % self._seed)
        for t, actions in enumerate(self._history):
            if t == len(self._history) - 1:
                self._check_replayed(worker)
            self._actions[worker.share] = actions[worker.share]
            worker.call(b"step")

    def _check_replayed(self, worker: "_Worker") -> None:
        """What the caller has seen must not have changed."""
        for name, rows in self._rows.items():
            if rows[worker.share].tobytes() != self._last[name][worker.share].tobytes():
                raise RunError(
                    f"{worker} was lost, and the same seed ({self._seed}) and actions now give another {name}: "
                    "the episode cannot go on; resume the run from its last checkpoint"
                )


class _Lost(Exception):
    """A worker that has died or does not answer."""


class _Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, index: int, share: slice, work: tuple[Any, ...], timeout: float | None):
        self.index, self.share, self._work, self._timeout = index, share, work, timeout
        self.process: Any = None  # multiprocessing.Process of CONTEXT
        self._connection: Connection | None = None

    def __str__(self) -> str:
        return f"worker {self.index} (environments {self.share.start} to {self.share.stop - 1})"

    @property
    def started(self) -> bool:
        return self.process is not None

    def start(self) -> None:
        CONTEXT.set_forkserver_preload([__name__])  # what it takes to load it is paid once for all workers
        self._connection, theirs = CONTEXT.Pipe()
        with theirs, _one_thread():  # the first start also starts the server, which all workers are forked from
            arguments = (*self._work, self.share, theirs, dict(os.environ))
            self.process = CONTEXT.Process(target=_work, args=arguments, name=f"k24lab {self}", daemon=True)
            self.process.start()

    def send(self, command: bytes) -> None:
        assert self._connection is not None
        try:
            self._connection.send_bytes(command)
        except OSError as error:
            raise self._death() from error

    def wait_for_start(self) -> None:
        self._wait(START_TIMEOUT)

    def receive(self) -> None:
        self._wait(self._timeout)

    def _wait(self, timeout: float | None) -> None:
        """Wait for the answer to the last command.

        Raises:
            _Lost: none will come.
            RunError: it is an exception.
        """
        assert self._connection is not None
        try:
            if not self._connection.poll(timeout):
                raise _Lost(f"has not answered for {timeout:g} s")
            answer = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if answer:
            raise RunError(f"worker {self.index}: {answer.decode()}")

    def call(self, command: bytes) -> None:
        self.send(command)
        self.receive()

    def stop(self, patience: float = PATIENCE) -> None:
        """End the process: kindly for `patience` seconds, then by force."""
        if self._connection is not None:
            self._connection.close()  # the worker notices, closes its environments and ends
        if self.process is not None:
            self.process.join(patience)
            self.process.kill()
            self.process.join()
            self.process.close()
        self.process = self._connection = None

    def _death(self) -> _Lost:
        self.process.join(PATIENCE)  # the pipe ends a moment before the process
        return _Lost(f"has died (exit code {self.process.exitcode})")


def _each(act: Callable[[_Worker], None], workers: Sequence[_Worker]) -> dict[_Worker, _Lost]:
    """Let every worker act, and say which were lost."""
    lost = {}
    for worker in workers:
        try:
            act(worker)
        except _Lost as error:
            lost[worker] = error
    return lost


def _stop(workers: Sequence[_Worker]) -> None:
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        if worker._connection is not None:
            worker._connection.close()  # all at once, so that they close side by side
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
    """What a worker does: commands in, an empty answer out, or the traceback of an exception."""
    die_with_parent()  # of the server
    threading.Thread(target=_end_with_main, daemon=True).start()  # the server itself outlives it while workers live
    os.environ.update(environ)  # the server that this process was forked from may have an older one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    torch.set_num_threads(1)
    envs: list[SingleEnv] = []
    rows = {name: array[share] for name, array in views(spec, memory).items()}
    actions = rows.pop("actions")
    lane = Lane(envs, rows, share.start)
    answer = _answer(lambda: envs.extend(make() for _ in range(len(actions))))
    try:
        while True:
            connection.send_bytes(answer)
            command, _, seed = connection.recv_bytes().partition(b" ")
            answer = _answer(partial(lane.reset, int(seed)) if command == b"reset" else partial(lane.step, actions))
    except (EOFError, OSError):  # the parent has closed its end, or is gone
        pass
    finally:
        close_all(envs)


def _answer(act: Callable[[], None]) -> bytes:
    """Nothing if all went well, else what to tell."""
    try:
        act()
    except K24Error as error:
        if error.__cause__ is None:  # a sentence of ours: no code of the environment's has to be looked at
            return str(error).encode()
        return f"{error}\n\n{traceback.format_exc()}".encode()
    except BaseException as error:  # what sys.exit raises would end the worker, which would be started again
        return f"{error}\n\n{traceback.format_exc()}".encode()
    return b""


def _end_with_main() -> None:
    """End this process, even in the middle of a step, when the one that wanted it is gone."""
    main = multiprocessing.parent_process()
    if main is not None:
        main.join()
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends, in whatever way (Linux; else nothing).

    For a worker as it starts, and as the `preexec_fn` of a process that an environment starts.

    Args:
        parent: process id of the one that starts this process; if it is gone already, this process ends.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent not in (None, os.getppid()):
            os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Numerical libraries read their number of threads from the environment when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
