"""A grid of 24 runs that is shot at, here, on a real SLURM and on a Ray of two nodes: `make test-cluster`.

Whatever is killed, all runs finish, none twice, and every number is that of a grid that nobody disturbed.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from conftest import TINY

from k24lab.lab.config import Config, build_config
from k24lab.lab.runs import CHECKPOINT, read_checkpoint, read_config, run_folder
from k24lab.lab.status import last_t_env

pytestmark = pytest.mark.cluster

COMMON = TINY | {"t_max": 6_000, "log_interval": 400, "updates_per_rollout": 2}
GRIDS = [{"method": ["k24", "fups"], "seed": list(range(12))}]
N_RUNS = 24
SLURM_DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def configs() -> list[Config]:
    return [build_config(COMMON | {"method": m, "seed": s}) for m in GRIDS[0]["method"] for s in GRIDS[0]["seed"]]


def folders(home: Path) -> list[Path]:
    return [home / "runs" / "g" / run_folder(config, "g").name for config in configs()]


def finished(home: Path) -> list[Path]:
    return [path for path in folders(home) if (path / "DONE").exists()]


class Sweep:
    """The sweep as a user starts it; several over one folder must add up."""

    def __init__(self, home: Path, *arguments: str, **environment: str):
        self.home = home
        grid = home / "grid.yaml"
        grid.write_text(yaml.safe_dump({"name": "g", "common": COMMON, "grids": GRIDS}))
        self.command = [sys.executable, "-m", "k24lab", "sweep", str(grid), *arguments]
        self.environment = os.environ | {"K24LAB_HOME": str(home)} | environment

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.home / "sweep.txt").open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment)

    def finish(self) -> None:
        """Start it, and expect that all runs are finished when it ends."""
        assert self.start().wait(1200) == 0, (self.home / "sweep.txt").read_text()[-2000:]
        assert len(finished(self.home)) == N_RUNS


def processes_of(path: Path) -> list[psutil.Process]:
    """The processes that train a run."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(path) in (p.info["cmdline"] or [])]


def kill_some(home: Path, count: int, while_alive: "subprocess.Popen[bytes]") -> list[Path]:
    """Kill `count` runs, each in the middle: after a checkpoint, before the end."""
    killed: list[Path] = []
    while len(killed) < count and while_alive.poll() is None:
        for path in folders(home):
            middle = (path / CHECKPOINT).exists() and not (path / "DONE").exists()
            if path not in killed and middle and len(killed) < count and (running := processes_of(path)):
                running[0].kill()
                killed.append(path)
        time.sleep(0.05)
    return killed


def assert_same_results(home: Path, reference: Path) -> None:
    for path, expected in zip(folders(home), folders(reference), strict=True):
        assert (path / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes(), path
        a, b = (read_checkpoint(p / CHECKPOINT, read_config(p).hash())["learner"]["agent"] for p in (path, expected))
        assert all(torch.equal(value, b[name]) for name, value in a.items()), path
    assert sorted(p.name for p in (home / "runs" / "g").iterdir() if p.is_dir() and p.name[0] != ".") == sorted(
        p.name for p in folders(home)
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The grid as nobody shot at it; says what it cost beside the training."""
    home = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    Sweep(home, "--jobs", "2").finish()
    wall = time.monotonic() - start
    seconds = [yaml.safe_load((path / "summary.json").read_text())["seconds"] for path in folders(home)]
    overhead = (2 * wall - sum(seconds)) / N_RUNS
    print(f"\n{N_RUNS} runs, 2 at a time: {wall:.0f} s; {overhead:.1f} s a run beside its training", file=sys.stderr)
    return home


def test_killed_runs_and_then_a_killed_sweep(undisturbed, home):
    sweep = Sweep(home, "--jobs", "2")
    process = sweep.start()
    killed = kill_some(home, N_RUNS // 2, process)
    assert len(killed) == N_RUNS // 2
    wait_for(lambda: any(processes_of(path) for path in folders(home)))
    process.kill()
    process.wait()
    before = {path: (path / "DONE").stat().st_mtime_ns for path in finished(home)}
    assert len(before) < N_RUNS
    sweep.finish()  # at once: what the killed sweep had running has a few seconds to end
    assert_same_results(home, undisturbed)
    assert {path: (path / "DONE").stat().st_mtime_ns for path in before} == before


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[None]:
    """A SLURM of this machine alone, with a key and folders of its own."""
    if missing := [name for name in SLURM_DAEMONS if shutil.which(name) is None]:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    folder = Path("/run") / f"k24lab-test-{os.getpid()}"  # munge wants no folder above its own that all may write to
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=socket.gethostname().split(".")[0], folder=folder, cpus=os.cpu_count()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    files = {"socket": "socket", "pid": "pid-file", "log": "log-file", "seed": "seed-file", "key": "key-file"}
    daemons = [
        ["munged", "-F", "--force", *(f"--{option}={folder}/munge/{name}" for name, option in files.items())],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    started = []
    try:
        for command in daemons:
            with (folder / "daemons.log").open("ab") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        wait_for(lambda: b"idle" in subprocess.run(["sinfo", "--noheader"], capture_output=True).stdout, 60)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)
        shutil.rmtree(folder)


def test_slurm(undisturbed, home, slurm):
    pytest.importorskip("submitit")
    sweep = Sweep(home, "--backend", "slurm", "--jobs", "2", "--memory-gb", "0.5")
    process = sweep.start()
    assert len(kill_some(home, 6, process)) == 6  # each job ends with that signal as its result
    in_work = [path for path in folders(home) if processes_of(path)]
    wait_for(lambda: in_work or [path for path in folders(home) if processes_of(path)])
    jobs = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%i", "-u", getpass.getuser()], capture_output=True)
    running = jobs.stdout.decode().split()
    assert running
    subprocess.run(["scontrol", "requeue", running[0]], check=True)  # as after a lost node
    for job in running[1:]:
        subprocess.run(["scancel", "--signal=KILL", job], check=True)  # from outside: no result will ever come
    assert process.wait(1200) == 2
    assert len(finished(home)) < N_RUNS
    sweep.finish()
    assert_same_results(home, undisturbed)


def test_ray_with_a_lost_node(undisturbed, home):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    try:
        process = Sweep(home, "--backend", "ray", RAY_ADDRESS=cluster.address).start()
        wait_for(lambda: len(finished(home)) >= 4)
        in_work = [path for path in folders(home) if processes_of(path) and last_t_env(path / "metrics.jsonl")]
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(1200) == 0, (home / "sweep.txt").read_text()[-2000:]
    finally:
        cluster.shutdown()
    assert in_work and len(finished(home)) == N_RUNS
    assert_same_results(home, undisturbed)


def test_a_sweep_that_is_stopped_takes_its_slurm_jobs_with_it(home, slurm):
    process = Sweep(home, "--backend", "slurm", "--jobs", "2", "--memory-gb", "0.5").start()
    wait_for(lambda: any((path / CHECKPOINT).exists() for path in folders(home)))
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    wait_for(lambda: not subprocess.run(["squeue", "-h"], capture_output=True).stdout, 60)
    wait_for(lambda: not any(processes_of(path) for path in folders(home)), 60)
