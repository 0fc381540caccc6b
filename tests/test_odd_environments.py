"""Each odd environment is trained, or refused in one sentence; what the adapter makes of those that are trained."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_environments
import pytest
import rude_environments
import torch
from conftest import TINY

from k24lab.envs.pettingzoo import PettingZooEnv
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import SerialVector
from k24lab.errors import ConfigError, RunError, RunWarning
from k24lab.lab.config import build_config
from k24lab.lab.runs import FAILED, run_folder
from k24lab.lab.status import run_status
from k24lab.lab.train import train

SMALL = TINY | {"t_max": 40, "n_envs": 2, "batch_size": 2, "test_episodes": 1, "method": "fups"}
SMALL |= {"log_interval": 20, "test_interval": 40, "checkpoint_interval": 20}

# What is trained; what is refused before there is a run folder, and what ends a run, with what must be said.
TRAINED = """
    Base ZeroMaskAtEnd DoneStays NumpyLimit FloatLimit SeedTeam NobodyAtStart Late DictObs DictObsMask Int8Obs StartAct
    Huge Mixed TupleOption WithKwargs EarlyEnd DoneOnce Returns Turns BlindAgent SmallSeeds DefaultLimit SharedEntries
    RandomSteps OutOfBounds ForgetsRewards AllDone
""".split()
WARNED = {
    "GlobalRng": r"two resets with one seed are not alike \(obs of agent '0' differs\)",
    "FailsAtClose": r"could not be closed: close\(\) raised RuntimeError: the window is gone \(rude_environments.py",
    "ExitsAtClose": r"could not be closed: close\(\) raised SystemExit: 0",
}
REFUSED = {
    "MultiDiscreteAct": r"agent 'a0': action space MultiDiscrete.*allowed: Discrete",
    "BoxAct": r"agent 'a0': action space Box.*allowed: Discrete",
    "TextObs": r"agent 'a0': an observation space Text.*allowed: Box, Discrete",
    "GraphObs": r"agent 'a0': an observation space Sequence.*allowed: Box, Discrete",
    "EmptyObs": r"no agent observes a number",
    "OldReset": r"reset must return the dictionaries observations, infos, not dict",
    "NoSeed": r"reset\(seed=0\) raised TypeError: .*unexpected keyword argument 'seed'",
    "StateNone": r"state\(\) must return an array of numbers, not None",
    "NoInfosAtReset": r"infos at step 0 must be a dictionary by agent, not None",
    "ExitsAtReset": r"reset\(seed=0\) raised SystemExit: 0 \(rude_environments.py, line \d+\)",
    "ExitsWhenBuilt": r"cannot be built: its factory raised SystemExit: 0",
    "FailsWhenBuilt": r"cannot be built: its factory raised RuntimeError: no display \(rude_environments.py",
    "StateFails": r"state\(\) at step 0 raised ValueError: no map",
    "SameNames": r"and none twice: \['a0', 'a0'\]",
    "HiddenLimit": r"names no episode limit.*set the option episode_limit",
    "HalfLimit": r"episode limit float 2\.5 .*whole number of env steps, at least 1",
}
ENDED = {
    "ShortObs": r"agent 'a0' at step 0: its observation has shape \(1,\), declared is Box\(.*: ndarray",
    "ShortMask": r"agent 'a0' at step 0: its action_mask is ndarray array\(\[1\].*: allowed are 3 numbers",
    "FlatBox": r"agent 'a0' at step 0: its observation has shape \(6,\), declared is Box\(",
    "BelowDiscrete": r"agent 'a1' at step 2: its observation is int -1, which is not in Discrete\(5\)$",
    "AboveMultiDiscrete": r"agent 'a0' at step 0: .*array\(\[2, 4\]\), which is not in MultiDiscrete\(\[3 4\]\)$",
    "WordsObs": r"agent 'a0' at step 0: .* declared is Box\(.*: ndarray array\(\['a'",
    "LostPart": r"agent 'a0' at step 0: its observation is dict .*without a part of Dict",
    "LogitMask": r"agent 'a0' at step 0: its action_mask is ndarray array\(.*inf.*: allowed are 3 numbers, each 0 or 1",
    "NobodyMoves": r"action_mask at step 4 leaves agent 'a0' no action, and no other",
    "Newcomer": r"rewards at step 2: key 'ghost' is no possible agent \(allowed: \['a0', 'a1', 'a2'\]\)",
    "AllReward": r"rewards at step 1: key '__all__' is no possible agent",
    "Growing": r"agent 'a3' at step 0 is none of possible_agents \(allowed: \['a0', 'a1', 'a2'\]\)",
    "GrowingTeam": r"possible_agents must not change: they were .*'a2'\] and are .*'a3'\] after a reset",
    "ScalarRewards": r"rewards at step 1 must be a dictionary by agent, not float 1\.0",
    "ArrayRewards": r"rewards at step 1 must be a dictionary by agent, not ndarray",
    "NoneReward": r"reward of agent 'a0' at step 1 is NoneType None \(allowed: one finite number in float32\)",
    "ArrayReward": r"reward of agent 'a0' at step 1 is ndarray array\(\[1\.\].*\(allowed: one finite number",
    "Huge64": r"reward of agent 'a0' at step 1 is float -1e\+300 \(allowed: one finite number in float32\)",
    "NanLater": r"environment 0: obs of agent 1 is nan at step 4",
    "WordFlag": r"terminated of agent 'a0' at step 1 is str 'no' \(allowed: a bool\)",
    "NoInfos": r"infos at step 1 must be a dictionary by agent, not None",
    "OldStep": r"step 1 must return the dictionaries observations, rewards, terminated, truncated, infos, not tuple",
    "NoObsAtEnd": r"agent 'a0' at step 10 has no observation",
    "StateShrinks": r"state\(\) at step 3 has 8 numbers, at first it had 12",
    "StateFailsLater": r"state\(\) at step 2 raised ValueError: no map",
    "Exits": r"environment 0: step 4 raised SystemExit: 0 \(rude_environments.py, line \d+\)",
    "FailsTwice": r"environment 0: step 4 raised SystemExit: 0",
    "Stops": r"environment 0: step 1 raised GeneratorExit: enough",
}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def path_of(name: str) -> str:
    return f"pettingzoo/{'odd' if hasattr(odd_environments, name) else 'rude'}_environments:{name}"


def config_of(name: str, **changes):
    return build_config(SMALL | {"task": path_of(name)} | changes)


def test_every_odd_environment_has_its_outcome():
    modules = (odd_environments, rude_environments)
    names = {n for module in modules for n, c in vars(module).items() if inspect.isclass(c) and hasattr(c, "reset")}
    assert names - {"ParallelEnv"} == {*TRAINED, *WARNED, *REFUSED, *ENDED}


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_only_unusual_is_trained(name):
    assert (train(config_of(name), progress=False) / "DONE").exists()  # and without any warning


@pytest.mark.parametrize("name", WARNED)
def test_what_does_not_decide_a_run_is_a_warning(name):
    with pytest.warns(RunWarning, match=WARNED[name]):
        folder = train(config_of(name), progress=False)
    assert (folder / "DONE").exists() and not (folder / FAILED).exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_seen_before_the_run_leaves_no_folder(name, home):
    with pytest.raises(ConfigError, match=REFUSED[name]) as error:
        train(config_of(name), progress=False)
    assert "\n" not in str(error.value) and path_of(name) in str(error.value)
    assert not (home / "runs").exists()


@pytest.mark.filterwarnings("ignore:.*could not be closed")
@pytest.mark.parametrize("name", ENDED)
def test_what_shows_in_the_run_ends_it_in_one_sentence(name):
    config = config_of(name)
    with pytest.raises(RunError, match=ENDED[name]) as error:
        train(config, progress=False)
    folder = run_folder(config, "default")
    said = (folder / FAILED).read_text()
    assert (
        said == f"RunError: {error.value}\n" and said.count("\n") == 1 and said.startswith("RunError: environment 0: ")
    )
    assert not (folder / "DONE").exists() and run_status(folder).state == "failed"


@pytest.mark.parametrize("name", ["Exits", "ShortObs", "AllReward"])
def test_worker_processes_say_the_same(name):
    env = make_env(path_of(name), n_envs=2, workers=1)
    try:
        with pytest.raises(RunError, match=ENDED[name]) as error:
            play(env, 0)
        assert str(error.value).startswith("worker 0: environment 0: ")
        assert ("Traceback" in str(error.value)) == (name == "Exits")  # whose code has to be looked at
    finally:
        env.close()


@pytest.mark.parametrize("name, code, marker", [("Exits", 2, FAILED), ("FailsAtClose", 0, "DONE")])
def test_the_exit_code_is_that_of_the_run(name, code, marker, home):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "k24lab", "train", "--task", path_of(name), "--quiet", *flags]
    here = str(Path(__file__).parent)
    environment = {"PYTHONPATH": f"{here}:{Path(here).parent}", "K24LAB_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert len([*home.glob("runs/*/*/DONE"), *home.glob(f"runs/*/*/{FAILED}")]) == 1
    assert list(home.glob(f"runs/*/*/{marker}"))
    if code:
        assert re.fullmatch(r"k24lab: error: environment 0: step 4 raised SystemExit: 0 .*\n", done.stderr)


# What the adapter makes of them


def play(env, seed: int) -> list:
    """All steps of an episode in which everyone takes the last available action."""
    steps = [env.reset(seed)]
    while not (steps[-1].terminated | steps[-1].truncated).all():
        avail = steps[-1].avail_actions
        last = avail.shape[-1] - 1 - avail.flip(-1).long().argmax(dim=-1)
        steps.append(env.step(last))
    return steps


@pytest.mark.parametrize("name", ["DoneStays", "DoneOnce", "Returns"])
def test_a_terminated_agent_stays_dead_until_the_next_reset(name):
    env = make_env(path_of(name), n_envs=1)
    for seed in (0, 1):
        steps = play(env, seed)
        assert [step.alive[0].tolist() for step in steps] == [[True] * 3] * 3 + [[False, True, True]] * 8
        for step in steps[3:]:
            assert not step.obs[0, 0].any() and step.avail_actions[0, 0].tolist() == [True, False, False]
        if name != "Returns":
            sent = env.envs[0].env.log[-10:]
            assert sent == [["a0", "a1", "a2"]] * 3 + [["a1", "a2"]] * 7


def test_an_agent_that_is_dead_may_still_be_paid():
    assert [step.reward.item() for step in play(make_env(path_of("DoneStays"), 1), 0)] == [0] + [3] * 10


def test_who_cannot_move_in_a_game_of_turns_has_one_action_that_is_sent():
    steps = play(make_env(path_of("Turns"), 1), 0)  # the environment asserts what is sent
    for t, step in enumerate(steps[:-1]):
        expected = [[True] * 3 if i == t % 3 else [True, False, False] for i in range(3)]
        assert step.avail_actions[0].tolist() == expected and step.alive.all()
    assert steps[-1].avail_actions.all()  # masks of zeros for everyone say nothing at the end
    assert steps[-1].truncated.all()


def test_rewards_are_those_of_possible_agents_alone():
    rewards = [step.reward.item() for step in play(make_env(path_of("Base"), 1), 0)]
    assert rewards == [0] + [1] * 10  # everyone plays 2, which is right for a2
    with pytest.raises(RunError, match="__all__"):
        play(make_env(path_of("AllReward"), 1), 0)


def test_seeds_of_32_bits_are_given_to_all_that_take_them_and_31_bits_to_the_others():
    seeds = []

    class Records(rude_environments.Base):
        def reset(self, seed=None, options=None):
            seeds.append(seed)
            if seed >= (2**31 if self.kw.get("small") else 2**32):  # numpy's older generators end at the second
                raise OverflowError
            return super().reset(seed)

    for small in (False, True):
        env = PettingZooEnv(Records(small=small))
        seeds.clear()
        rows = [env.reset(seed) for seed in (5, 2**31 + 5, 2**32 - 1)]
        assert seeds == ([5, 5, 2**31 - 1] if small else [5, 2**31 + 5, 2**32 - 1])
        assert len(rows) == 3


FLAGS = [(True, False), (np.True_, np.False_), (1, 0), (np.int8(1), np.int8(0)), (1.0, 0.0)]


@pytest.mark.parametrize(("yes", "no"), [*FLAGS, (np.array(True), np.array(False)), (np.array(1), np.array(0))])
def test_a_flag_is_a_bool_or_a_number_that_means_one(yes, no):
    class Flagged(rude_environments.Base):
        def over(self, agent):
            return (yes if self.t == 3 else no), no

    env = PettingZooEnv(Flagged())
    env.reset(0)
    rows = [env.step(np.zeros(3, dtype=np.int64)) for _ in range(3)]
    assert [row.terminated for row in rows] == [False, False, True] and not any(row.truncated for row in rows)


@pytest.mark.parametrize("flag", [2, -1, 0.5, None, "yes"])
def test_a_flag_that_means_neither_is_refused(flag):
    class Flagged(rude_environments.Base):
        def over(self, agent):
            return False, flag if agent == "a1" else False

    env = PettingZooEnv(Flagged())
    env.reset(0)
    with pytest.raises(RunError, match=r"truncated of agent 'a1' at step 1 is .* \(allowed: a bool\)"):
        env.step(np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("option", ["max_cycles=7", "episode_limit=7"])
def test_an_option_that_is_the_limit_need_not_be_an_attribute_too(option):
    env = make_env(f"{path_of('HiddenLimit')}:{option}", 1)
    assert env.spec.episode_limit == 7 and type(env.spec.episode_limit) is int
    assert make_env(path_of("DefaultLimit"), 1).spec.episode_limit == 10


@pytest.mark.parametrize("name", ["NumpyLimit", "FloatLimit"])
def test_whole_numbers_of_any_type_are_limits(name):
    limit = make_env(path_of(name), 1).spec.episode_limit
    assert limit == 10 and type(limit) is int


def test_environments_are_closed_when_one_of_them_cannot_be_built():

    made = []

    def make():
        if len(made) == 2:
            raise ConfigError("no third")
        made.append(PettingZooEnv(odd_environments.Base()))
        made[-1].env.close = lambda: closed.append(True)
        return made[-1]

    closed = []
    with pytest.raises(ConfigError, match="no third"):
        SerialVector(make, 3)
    assert closed == [True, True]


@pytest.mark.parametrize(
    "value, said",
    [
        (np.zeros((4, 1)), r"has shape \(4, 1\), declared is Box"),
        (np.float32(1), r"has shape \(\), declared is Box"),
        (None, r"has shape \(\), declared is Box"),
        ([0.0, 1.0, 2.0], r"has shape \(3,\), declared is Box"),
        (np.zeros(4, complex), "declared is Box"),
    ],
)
def test_nothing_else_than_the_declared_shape_is_taken(value, said):
    class Given(odd_environments.Base):
        def see(self, agent):
            return value

    with pytest.raises(RunError, match=rf"agent 'a0' at step 0: .*{said}"):
        SerialVector(lambda: PettingZooEnv(Given()), 1).reset(0)


def test_a_list_or_a_tensor_of_the_declared_shape_is_taken():
    class Given(odd_environments.Base):
        def see(self, agent):
            return {"a0": [1.0, 2.0, 3.0, 4.0], "a1": torch.arange(4), "a2": np.arange(4)}[agent]

    step = SerialVector(lambda: PettingZooEnv(Given()), 1).reset(0)
    assert step.obs[0].tolist() == [[1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3]]
