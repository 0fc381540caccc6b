"""Vectors of single environments: same numbers in this process and in workers, and nothing left behind in any end."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import alive, gone

from k24lab.envs.base import EnvSpec, Step
from k24lab.envs.single_env import Row, SingleEnv
from k24lab.envs.vector_env import SerialVector
from k24lab.envs.worker_processes import SubprocessVector, vectorize
from k24lab.errors import ConfigError, RunError

SIZES = {"n_envs": 1, "n_agents": 2, "obs_dims": (3, 3), "n_actions": (4, 4), "state_dim": 2}


class Drift(SingleEnv):
    """A random walk of 5 to 9 steps, in which every number depends on the seed and on all actions.

    `fault` happens to environment 3 of a reset with seed 1, at its env step `at`; a file that is there (`once`) keeps
    it from happening again.
    """

    agents = ("left", "right")

    def __init__(self, fault: str = "", at: int = 3, once: Path | None = None):
        self.spec = EnvSpec(**SIZES, episode_limit=9, n_unit_types=3, has_win=True)
        self.fault, self.at, self.once = fault, at, once
        self.closed = False

    def reset(self, seed: int) -> Row:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.x = self.rng.normal(size=2)
        self.length = int(self.rng.integers(5, 10))
        self.faulty = bool(self.fault) and seed == seed_of(1, e=3)
        self.types = self.rng.integers(3, size=2)
        return self.row()

    def step(self, actions: np.ndarray) -> Row:
        self.t += 1
        if self.faulty and self.t == self.at and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            self.fail()
        self.x = self.x + actions * self.rng.normal(size=2)
        if self.fault == "differs" and self.once.exists():
            self.x += 1
        return self.row(reward=float(self.x.sum()))

    def fail(self) -> None:
        if self.fault == "raises":
            raise KeyError("no such unit")
        if self.fault == "hangs":
            time.sleep(1000)
        os.kill(os.getpid(), signal.SIGKILL)

    def row(self, reward: float = 0.0) -> Row:
        ended = self.t >= self.length
        return Row(
            obs=np.stack([self.x, self.x + 1, self.x * 2], axis=1),
            state=self.x,
            avail_actions=np.array([[True, True, True, self.t % 2 == 0]] * 2),
            alive=np.array([True, self.t < 4]),
            unit_type=self.types,
            reward=reward,
            terminated=ended and self.length % 2 == 0,
            truncated=ended and self.length % 2 == 1,
            won=ended and bool(self.x[0] > 0),
        )

    def close(self) -> None:
        self.closed = True


class Closing(Drift):
    """Takes a second to close."""

    def close(self) -> None:
        time.sleep(1)


def seed_of(seed: int, e: int) -> int:
    return int(np.random.SeedSequence([seed, e]).generate_state(1)[0])


def play(env, seed: int, steps: int = 12) -> list[Step]:
    """All steps of the episodes, and some after their end, with actions that follow from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    played = [env.reset(seed)]
    for _ in range(steps):
        played.append(env.step(torch.randint(3, (env.spec.n_envs, 2), generator=generator)))
    return played


def same(first: list[Step], second: list[Step]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True) for name in vars(a)
    )


def pids(env: SubprocessVector) -> list[int]:
    return [worker.process.pid for worker in env._workers]


@pytest.fixture(scope="module")
def vector():
    """Five environments in two workers, for all tests that do them no lasting harm."""
    env = SubprocessVector(Drift, n_envs=5, workers=2)
    yield env
    env.close()


# Numbers


def test_workers_give_the_same_numbers_as_this_process(vector):
    serial = SerialVector(Drift, n_envs=5)
    for seed in (0, 1, 0):
        assert same(play(vector, seed), play(serial, seed))
    assert not same(play(serial, 0), play(serial, 1))


def test_each_environment_is_its_own_whatever_their_number():
    many, few = play(SerialVector(Drift, n_envs=3), 4, steps=0)[0], play(SerialVector(Drift, n_envs=1), 4, steps=0)[0]
    assert torch.equal(many.obs[:1], few.obs) and not torch.equal(many.obs[0], many.obs[1])
    lone = Drift().reset(seed_of(4, e=2))
    assert torch.equal(many.state[2], torch.from_numpy(lone.state).float()) and many.unit_type[2].tolist() == list(
        lone.unit_type
    )


def test_ended_rows_are_frozen_and_their_actions_ignored():
    env = SerialVector(Drift, n_envs=6)
    step = env.reset(0)
    ends = {}
    for t in range(1, 12):
        ended = step.terminated | step.truncated
        before, step = step, env.step(torch.where(ended[:, None], 99, 1).expand(6, 2))
        for name in ("obs", "state", "avail_actions", "alive", "terminated", "truncated", "won", "unit_type"):
            assert torch.equal(getattr(step, name)[ended], getattr(before, name)[ended])
        assert not step.reward[ended].any() and step.reward[~ended].all()
        ends |= dict.fromkeys(torch.nonzero((step.terminated | step.truncated) & ~ended).flatten().tolist(), t)
    assert len(ends) == 6 and len(set(ends.values())) > 1
    assert step.terminated.tolist() == [ends[e] % 2 == 0 for e in range(6)]
    assert not (step.terminated & step.truncated).any()


def test_kept_steps_do_not_change(vector):
    step = vector.reset(0)
    copy = step.obs.clone()
    vector.step(torch.ones(5, 2, dtype=torch.long))
    assert torch.equal(step.obs, copy)


def test_the_first_step_needs_a_reset_before_it():
    env = SerialVector(Drift, n_envs=2)
    with pytest.raises(ValueError, match="step before the first reset"):
        env.step(torch.zeros(2, 2, dtype=torch.long))
    env.reset(0)
    env.step(torch.zeros(2, 2, dtype=torch.long))
    env.close()
    with pytest.raises(ValueError, match="step before the first reset"):
        env.step(torch.zeros(2, 2, dtype=torch.long))


def test_an_action_that_is_not_available_moves_nothing(vector):
    start = vector.reset(0)
    vector.step(torch.zeros(5, 2, dtype=torch.long))
    for bad in (3, 4, -1):
        actions = torch.zeros(5, 2, dtype=torch.long)
        actions[3, 1] = bad
        with pytest.raises(ValueError, match=rf"environment 3, agent 'right': action {bad} is not .*\[0, 1, 2\]"):
            vector.step(actions)
    vector.step(torch.zeros(5, 2, dtype=torch.long))
    assert torch.equal(vector.reset(0).obs, start.obs)


def test_a_row_of_another_shape_is_an_error():
    class Short(Drift):
        def row(self, reward: float = 0.0) -> Row:
            row = super().row(reward)
            return Row(**vars(row) | {"state": row.state[:1]})  # numpy would fill both numbers with it

    with pytest.raises(RunError, match=r"environment 0: ValueError: state has shape \(1,\) instead of \(2,\)"):
        SerialVector(Short, n_envs=1).reset(0)


def test_sizes_and_builders_that_cannot_be_used_are_refused():
    for make in (
        lambda: vectorize(Drift, 0),
        lambda: vectorize(Drift, 0, workers=1),
        lambda: vectorize(Drift, 1, workers=-1),
    ):
        with pytest.raises(ConfigError, match="must be at least 1"):
            make()


# Errors


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_names_the_environment_and_needs_a_reset(workers: int):
    env = vectorize(partial(Drift, "raises"), 5, workers)
    try:
        with pytest.raises(RunError, match="environment 3: KeyError: 'no such unit'") as error:
            play(env, seed=1)
        if workers:
            assert "worker 1" in str(error.value) and 'raise KeyError("no such unit")' in str(error.value)
        else:
            assert isinstance(error.value.__cause__, KeyError)
        with pytest.raises(ValueError, match="after an error"):
            env.step(torch.zeros(5, 2, dtype=torch.long))
        assert same(play(env, seed=0), play(SerialVector(Drift, 5), seed=0))
    finally:
        env.close()


def fails_to_build(flag: Path) -> Drift:
    if flag.exists():
        raise OSError("no game here")
    return Drift()


def test_an_environment_that_cannot_be_built_in_a_worker_is_told(tmp_path):
    env = SubprocessVector(partial(fails_to_build, tmp_path / "flag"), n_envs=2, workers=1)
    (tmp_path / "flag").touch()
    with pytest.raises(RunError, match=r"worker 0: no game here(.|\n)*Traceback"):
        env.reset(0)
    assert env._workers[0].process is None


@pytest.mark.parametrize(("fault", "at"), [("dies", 1), ("dies", 4), ("hangs", 4)])
def test_a_lost_worker_is_replaced_and_its_episodes_go_on(fault: str, at: int, tmp_path, caplog):
    broken = partial(Drift, fault, at=at, once=tmp_path / "once")
    env = SubprocessVector(broken, n_envs=5, workers=2, timeout=3.0 if fault == "hangs" else 60.0)
    try:
        with caplog.at_level(logging.WARNING, "k24lab"):
            played = play(env, seed=1)
        assert (tmp_path / "once").exists() and same(played, play(SerialVector(Drift, 5), seed=1))
        what = {"dies": r"has died \(exit code -9\)", "hangs": "has not answered for 3 s"}[fault]
        pattern = rf"worker 1 \(environments 3 to 4\) {what}; restart 1 of 3 with seed 1, then {at} env steps again"
        assert len(caplog.records) == 1 and caplog.records[0].levelname == "WARNING"
        assert re.fullmatch(pattern, caplog.records[0].getMessage())
    finally:
        env.close()


def test_a_worker_that_is_killed_between_two_steps_or_two_episodes_is_replaced(vector, caplog):
    expected, generator = play(SerialVector(Drift, 5), seed=6, steps=4), torch.Generator().manual_seed(6)
    vector.reset(0)  # workers start with the first reset
    os.kill(pids(vector)[0], signal.SIGKILL)
    played = [vector.reset(6)]
    for t in range(4):
        if t == 2:
            os.kill(pids(vector)[1], signal.SIGKILL)
        played.append(vector.step(torch.randint(3, (5, 2), generator=generator)))
    assert same(played, expected) and len(caplog.records) == 2


def test_restarts_are_bounded_and_nothing_is_left():
    env = SubprocessVector(partial(Drift, "dies"), n_envs=5, workers=2, max_restarts=2)
    env.reset(1)
    before = pids(env)
    with pytest.raises(RunError, match=r"worker 1 .*has died.*after 2 restarts.*allowed: 2"):
        play(env, seed=1)
    assert gone(before, seconds=0.1) and not any(worker.process for worker in env._workers)


def test_an_episode_that_does_not_repeat_itself_is_an_error_not_a_wrong_number(tmp_path):
    env = SubprocessVector(partial(Drift, "differs", once=tmp_path / "once"), n_envs=5, workers=2)
    with pytest.raises(RunError, match=r"worker 1 .*seed \(1\) and actions now give another obs"):
        play(env, seed=1)


# Ends


def test_closing_closes_every_environment_and_ends_every_worker(vector):
    serial = SerialVector(Drift, n_envs=2)
    serial.close()
    assert all(env.closed for env in serial.envs)
    env = SubprocessVector(Closing, n_envs=3, workers=8)
    env.reset(0)
    before = pids(env)
    assert len(before) == 3  # no more than environments
    started = time.monotonic()
    env.close()
    assert gone(before, seconds=0.1) and time.monotonic() - started < 4


PARENT = """
import psutil, signal, sys
sys.path.insert(0, {tests!r})
from test_vector_env import *
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    env = SubprocessVector(partial(Drift, "hangs"), n_envs=4, workers=2)
    env.reset(0)
    print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
    if {crash}:
        raise RuntimeError("crash")
    play(env, seed=1)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, None])
def test_no_process_outlives_its_parent(end: signal.Signals | None, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), crash=end is None))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script], stdout=pipe, stderr=pipe, text=True, start_new_session=True) as run:
        try:
            children = [int(pid) for pid in run.stdout.readline().split()]
            assert len(children) >= 4 and (end is None or all(map(alive, children)))  # 2 workers and 2 helpers
            if end is signal.SIGKILL:
                time.sleep(1)  # until a worker hangs, and so does not notice that its pipe has ended
                run.kill()
            elif end is signal.SIGINT:
                time.sleep(1)  # until a worker hangs
                os.killpg(run.pid, end)  # as Ctrl-C does: the workers get it too
            errors = run.communicate(timeout=60)[1]
            assert gone(children)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert errors.count("Traceback") == (end is not signal.SIGKILL)  # the parent's alone
