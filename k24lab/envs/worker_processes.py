"""Environments in worker processes: a vector that uses more than one core."""

import contextlib
import multiprocessing
import os
import pickle
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

from k24lab.envs.base import EnvSpec
from k24lab.envs.single_env import SingleEnv
from k24lab.envs.vector_env import EnvGroup, Vector, close_all, row_type
from k24lab.errors import ConfigError, K24Error, RunError

START_TIMEOUT = 300.0  # seconds that a worker may take to load what it needs and build its environments
TIMEOUT = 600.0  # ... for a reset or a step of all its environments
CLOSE_TIMEOUT = 5.0  # seconds that a worker gets to close its environments
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CONTEXT = multiprocessing.get_context("forkserver")  # torch is loaded once, and no state of this process is forked


class SubprocessVector(Vector):
    """E environments in worker processes of one thread each, which write into memory that they share with this one.

    - An environment that raises ends in one RunError with its traceback; so does a worker that dies or does not answer
      in time. A run then goes on from its last checkpoint.
    - Workers start at the first reset, and end with `close`, with this object, and with this process, however it
      ends (but for one that never lets another Python thread run). After an error a reset starts them again.
    """

    def __init__(self, make: Callable[[], SingleEnv], n_envs: int, workers: int, timeout: float = TIMEOUT):
        """`make` is called in this process, for the sizes, and in the workers, so it must be picklable.

        Args:
            make: builds one environment.
            n_envs: E.
            workers: processes; no more are started than there are environments.
            timeout: seconds that a worker may take for a reset or a step of all its environments.

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
        self._timeout = timeout
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def close(self) -> None:
        """End every worker."""
        self._running = False
        _stop(self._workers)

    def _start(self, seed: int) -> None:
        self._exchange([b"reset %d" % seed] * len(self._workers))

    def _advance(self, actions: Int[np.ndarray, "E N"]) -> None:
        self._exchange([b"step " + actions[worker.share].tobytes() for worker in self._workers])

    def _exchange(self, commands: Sequence[bytes]) -> None:
        """Give each worker its command, started if need be, and wait until all have done theirs."""
        try:
            idle = [worker for worker in self._workers if worker.process is None]
            for worker in idle:
                worker.start()
            for worker in idle:
                worker.receive(START_TIMEOUT)
            for worker, command in zip(self._workers, commands, strict=True):
                worker.send(command)
            for worker in self._workers:
                worker.receive(self._timeout)
        except BaseException:
            _stop(self._workers)  # also after an interrupt: an answer that was not read must not meet the next reset
            raise


class _Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, index: int, share: slice, work: tuple[Any, ...]):
        self.index, self.share, self._work = index, share, work
        self.process: Any = None  # multiprocessing.Process of CONTEXT
        self.connection: Any = None  # multiprocessing.Connection

    def __str__(self) -> str:
        return f"worker {self.index} (environments {self.share.start} to {self.share.stop - 1})"

    def start(self) -> None:
        CONTEXT.set_forkserver_preload([__name__])  # what it takes to load it is paid once for all workers
        self.connection, theirs = CONTEXT.Pipe()
        with theirs, _one_thread():  # the first start also starts the server, which all workers are forked from
            arguments = (*self._work, self.share, theirs, dict(os.environ))
            self.process = CONTEXT.Process(target=_work, args=arguments, name=f"k24lab {self}", daemon=True)
            self.process.start()

    def send(self, command: bytes) -> None:
        try:
            self.connection.send_bytes(command)
        except OSError as error:
            raise self._death() from error

    def receive(self, timeout: float) -> None:
        """Wait until the last command is done.

        Raises:
            RunError: its environments raised, it has died, or it does not answer.
        """
        try:
            if not self.connection.poll(timeout):
                raise RunError(f"{self} has not answered for {timeout:g} s")
            problem = self.connection.recv_bytes().decode()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if problem:
            raise RunError(f"worker {self.index}: {problem}")

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
        """Let the worker notice, close its environments and end."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def _death(self) -> RunError:
        self.process.join(CLOSE_TIMEOUT)  # the pipe ends a moment before the process
        return RunError(f"{self} has died (exit code {self.process.exitcode})")


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
    threading.Thread(target=_end_with_main, daemon=True).start()
    os.environ.update(environ)  # the server that this process was forked from may have an older one
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
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
    except K24Error as error:
        if error.__cause__ is None:  # a sentence of ours: no code of the environment's has to be looked at
            return str(error).encode()
        return f"{error}\n\n{traceback.format_exc()}".encode()
    except BaseException as error:  # what sys.exit raises would end the worker without a word
        return f"{error}\n\n{traceback.format_exc()}".encode()
    return b""


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
