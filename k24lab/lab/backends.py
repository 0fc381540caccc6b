"""Where the runs of a sweep are computed: processes on this machine, jobs of SLURM, tasks of Ray.

A run is the same command everywhere, and its folder, on a path that all machines share, is all that they exchange.
"""

import importlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from k24lab.errors import ConfigError, RunError
from k24lab.lab.paths import HOME_VARIABLE, project_root, runs_dir

BackendName = Literal["local", "slurm", "ray"]
INTERRUPTED = 130  # exit code of a run that was told to stop; a signal's own is negative
STOP_SECONDS = 10  # between asking a run to stop and killing it
QUEUE_SECONDS = 10.0  # between two queries of SLURM's queue
PARENT_VARIABLE = "K24LAB_PARENT"  # environment variable of a run: id of the process that started it
PARENT_SECONDS = 1.0  # between two checks that this process is alive
MEMORY_GB = 2.0  # of a run; the small networks of this field need less
MOST_TIMEOUTS = 1000  # of a SLURM job; after each it goes on from its checkpoint
CLUSTER_JOBS = 1000  # at a time on a cluster, whose own limits then decide


class Resources(NamedTuple):
    """What the runs of a sweep may use."""

    jobs: int | None = None  # runs at a time; None: what the machine has room for, or CLUSTER_JOBS
    n_threads: int = 1  # CPUs of a run
    hours: float = 24.0  # of a SLURM job
    memory_gb: float = MEMORY_GB  # of a run
    gpus: float = 0.0  # of a run
    options: Mapping[str, str] = {}  # further parameters of submitit or of Ray's tasks


@runtime_checkable
class Job(Protocol):
    """One run that was submitted."""

    def done(self) -> bool:
        """Whether it has ended, with success or without."""

    def result(self) -> int:
        """Exit code; waits for the end, and raises if the backend lost the run."""


@runtime_checkable
class Backend(Protocol):
    """Runs commands."""

    def submit(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> Sequence[Job]:
        """Submit one command per run; its output is appended to its log."""

    def stop(self) -> None:
        """Stop the runs that have not ended."""


class Command:
    """The command of one run, with its log and environment variables; it can be sent to another machine."""

    def __init__(self, command: list[str], log: Path, n_threads: int):
        self.command, self.log, self.n_threads = command, log, n_threads
        self.home = str(project_root())

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it in a process group of its own: a Ctrl-C in the terminal reaches the sweep alone."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.n_threads))
        environment = os.environ | threads | {HOME_VARIABLE: self.home, PARENT_VARIABLE: str(os.getpid())}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def __call__(self) -> int:
        """Run it to its end; if SLURM or Ray ends this process early, the run ends too."""
        process = self.start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return process.wait()
        except BaseException:
            end(process)
            raise

    def checkpoint(self) -> Any:
        """What submitit queues when SLURM ends the job early: the same run, which goes on from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def end_with_parent() -> None:
    """Let this process end when the sweep that started it has died.

    A sweep that was killed, or a lost node of Ray, must leave no run behind that keeps its lock.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a run to end, and after a while kill it with all that it started."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Local:
    """At most `jobs` processes at a time on this machine."""

    def __init__(self, jobs: int, n_threads: int):
        self.n_threads = n_threads
        self._pool = ThreadPoolExecutor(jobs)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def submit(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> Sequence[Job]:
        """Queue them; each starts when a place is free."""
        tasks = [Command(command, log, self.n_threads) for command, log in zip(commands, logs, strict=True)]
        return [self._pool.submit(self._run, task) for task in tasks]

    def _run(self, task: Command) -> int:
        with self._lock:  # after `stop` nothing starts
            if self._stopped:
                return INTERRUPTED
            process = task.start()
            self._running.add(process)
        code = process.wait()
        self._running.discard(process)
        return code

    def stop(self) -> None:
        """Ask every process to end, and kill those that do not."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        for process in running:
            end(process)
        self._pool.shutdown()


class Slurm:
    """One job array, through submitit; a job that SLURM ends early (time, preemption) is queued again and goes on.

    Submitit asks SLURM's accounting (sacct) whether a job was killed, and many clusters have none: so the queue is
    asked as well. Submitit's own files lie in `folder`, which all machines share.
    """

    def __init__(self, resources: Resources, folder: Path, cluster: str = "slurm"):
        if resources.gpus != int(resources.gpus):
            raise ConfigError(f"gpus = {resources.gpus} of a SLURM job must be a whole number (Ray shares GPUs)")
        submitit = self._submitit = _import("submitit", "slurm")
        self.n_threads, self._has_queue = resources.n_threads, cluster == "slurm"
        self._jobs: list[Any] = []
        self._asked_at = -math.inf
        self._misses: dict[str, int] = {}  # queries in a row that did not find a job
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
            self._executor.update_parameters(
                timeout_min=math.ceil(60 * resources.hours),
                mem_gb=resources.memory_gb,
                cpus_per_task=resources.n_threads,
                gpus_per_node=int(resources.gpus),
                slurm_array_parallelism=resources.jobs or CLUSTER_JOBS,
                **resources.options,
            )
        except (RuntimeError, NameError) as error:  # no sbatch; a parameter that submitit does not know
            raise ConfigError(f"SLURM cannot be used: {error}") from error

    def submit(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> Sequence[Job]:
        """Submit one array."""
        tasks = [Command(command, log, self.n_threads) for command, log in zip(commands, logs, strict=True)]
        if not tasks:  # submitit warns of an empty array
            return []
        try:
            with self._executor.batch():
                self._jobs = [self._executor.submit(task) for task in tasks]
        except self._submitit.core.utils.FailedJobError as error:  # sbatch says why
            raise ConfigError(f"SLURM cannot be used: {' '.join(str(error).split())}") from error
        return [SlurmJob(job, self) for job in self._jobs] if self._has_queue else self._jobs

    def stop(self) -> None:
        """Cancel the jobs that have not ended."""
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)

    def lost(self, job: str) -> bool:
        """Whether two queries did not find a job; after one its result may still be on its way over the file system."""
        if time.monotonic() - self._asked_at >= QUEUE_SECONDS:
            self._asked_at = time.monotonic()
            names = [one.job_id for one in self._jobs]
            arrays = ",".join({name.split("_")[0] for name in names})
            command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={arrays}"]
            answer = subprocess.run(command, capture_output=True, text=True)
            if answer.returncode == 0 or "Invalid job id" in answer.stderr:  # forgotten: it ended long ago
                found = set(answer.stdout.split())
                self._misses = {name: 0 if name in found else self._misses.get(name, 0) + 1 for name in names}
        return self._misses.get(job, 0) > 1


class SlurmJob:
    """A job of submitit that notices when SLURM has lost it."""

    def __init__(self, job: Any, array: Slurm):
        self._job, self._array = job, array

    def done(self) -> bool:
        """Whether it has ended, with success or without."""
        return self._job.done() or self._array.lost(self._job.job_id)

    def result(self) -> int:
        """Exit code; raises if there is none."""
        if not self._job.done():  # submitit would wait for it
            raise RunError(f"SLURM job {self._job.job_id} ended without a result")
        return int(self._job.result())


class Ray:
    """Tasks of a Ray cluster, or of a Ray on this machine; a GPU may be shared (`gpus` = 0.25).

    A task whose machine is lost starts once more, and its run goes on from its checkpoint.
    """

    def __init__(self, resources: Resources):
        self.n_threads = resources.n_threads
        self._refs: list[Any] = []
        self._ray = _import("ray", "ray")
        if not self._ray.is_initialized():
            try:
                self._ray.init(address="auto", log_to_driver=False)
            except ConnectionError:  # no cluster: one of this machine's
                jobs = resources.jobs or default_jobs(resources.n_threads, resources.memory_gb)
                self._ray.init(num_cpus=jobs * resources.n_threads, log_to_driver=False, include_dashboard=False)
        needs = {"num_cpus": resources.n_threads, "num_gpus": resources.gpus, "max_retries": 3}
        self._remote = self._ray.remote(**needs | dict(resources.options))(Command.__call__)

    def submit(self, commands: Sequence[list[str]], logs: Sequence[Path]) -> Sequence[Job]:
        """Start them as the cluster has room."""
        for command, log in zip(commands, logs, strict=True):
            self._refs.append(self._remote.remote(Command(command, log, self.n_threads)))
        return [ref.future() for ref in self._refs]

    def stop(self) -> None:
        """Cancel the tasks; each passes it on to its run."""
        for ref in self._refs:
            self._ray.cancel(ref, force=False)
        self._ray.shutdown()


def build_backend(name: BackendName, resources: Resources, group: str) -> Backend:
    """The backend of a name.

    Raises:
        ConfigError: fewer than one run at a time, a package that is not installed, no SLURM, an unknown parameter.
    """
    if resources.jobs is not None and resources.jobs < 1:
        raise ConfigError(f"jobs = {resources.jobs} must be at least 1")
    for key in ("memory_gb", "hours"):
        if getattr(resources, key) <= 0:
            raise ConfigError(f"{key} = {getattr(resources, key)} must be above 0")
    if name == "slurm":
        return Slurm(resources, runs_dir() / group / ".slurm")
    if name == "ray":
        return Ray(resources)
    if resources.options:
        raise ConfigError(f"options {dict(resources.options)} mean nothing to the backend 'local'")
    return Local(resources.jobs or default_jobs(resources.n_threads, resources.memory_gb), resources.n_threads)


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        needs = f"backend {extra!r} needs the package {package}: pip install 'k24lab[{extra}]' ({error})"
        raise ConfigError(needs) from error


def default_jobs(n_threads: int, memory_gb: float) -> int:
    """As many runs at a time as this machine has cores and memory for, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores // n_threads, int(memory / memory_gb)))


def command_of(path: Path, notebook: str | None) -> list[str]:
    """The command that trains the run in a folder, or goes on with it."""
    return [sys.executable, "-m", "k24lab", "resume", str(path), *(["--notebook", notebook] if notebook else [])]
