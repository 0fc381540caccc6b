"""`k24lab doctor --task`: what it finds in environments that are right, odd, and of PettingZoo's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from k24lab import cli
from k24lab.envs.registry import make_env
from k24lab.envs.task_doctor import CANCEL, examine
from k24lab.errors import ConfigError
from k24lab.lab.doctor import doctor

TURNS = """
from pettingzoo.classic.connect_four.connect_four import env as connect_four_env
from pettingzoo.classic.tictactoe.tictactoe import env as tictactoe_env
from pettingzoo.utils.conversions import turn_based_aec_to_parallel

def tictactoe():
    return turn_based_aec_to_parallel(tictactoe_env())

def connect_four():
    return turn_based_aec_to_parallel(connect_four_env())
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    (tmp_path / "k24_turns.py").write_text(TURNS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)


def found_in(name: str, episodes: int = 2):
    return examine(f"pettingzoo/{name}", episodes)[1]


@pytest.mark.parametrize("task", ["rolenav:episode_limit=5,n_types=2", "mpe2/simple_tag:max_cycles=5"])
def test_our_own_tasks_have_no_problems(task, capsys):
    assert doctor(task=task, episodes=2) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{task}\n  agents    3: ") and said.endswith("  no problems\n")
    assert "played    2 random episodes of 5 env steps; 0 terminated, 2 truncated" in said


@pytest.mark.parametrize("task, code", [("odd_environments:Base", 0), ("odd_environments:DoneStays", 1)])
def test_the_command_line_has_the_exit_code_of_what_was_found(task, code, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["k24lab", "doctor", "--task", f"pettingzoo/{task}", "--episodes", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code and "1 random episodes of 10 env steps" in capsys.readouterr().out


def test_an_environment_without_fault_has_sizes_and_nothing_else(capsys):
    assert doctor(task="pettingzoo/odd_environments:Mixed", episodes=2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "pettingzoo/odd_environments:Mixed",
        "  agents    3: a0, a1, a2",
        "  observed  numbers: 3, 4, 5; state: 12",
        "  actions   2, 3, 4",
        "  limit     10 env steps",
    ]
    assert lines[5].endswith("2 random episodes of 4 env steps; 2 terminated, 0 truncated")
    assert lines[7:] == [
        "  no problems",
    ]


@pytest.mark.parametrize(
    "name, problem",
    [
        ("odd_environments:DoneStays", r"agent 'a0' is in agents after its end.*episode 0, step 4: it ended at step 3"),
        ("rude_environments:Returns", r"agent 'a0' is in agents after its end.*step 6: it ended at step 3"),
        ("odd_environments:GlobalRng", r"same seed and actions do not .*obs of agent 'a0' differs from step 0 on"),
        ("rude_environments:RandomSteps", r"same seed and actions do not .*reward differs from step 1 on"),
        ("odd_environments:NanLater", r"obs of agent 'a1' is nan .*episode 0, step 4"),
        ("rude_environments:OutOfBounds", r"'a0' are outside of their space .*step 5: 11, declared are -10 to 10"),
        ("rude_environments:AllReward", r"rewards at step 1: key '__all__' is no possible agent"),
        ("odd_environments:StateShrinks", r"state\(\) at step 3 has 8 numbers, at first it had 12"),
        ("rude_environments:Exits", r"step 4 raised SystemExit: 0"),
        ("odd_environments:SeedTeam", "parallel_api_test raised AssertionError"),
    ],
)
def test_what_an_environment_should_not_do_is_told_with_its_place(name, problem, capsys):
    assert doctor(task=f"pettingzoo/{name}", episodes=2) == 1
    said = capsys.readouterr().out
    assert re.search(problem, said.partition("  problems\n")[2]), said
    assert "no problems" not in said


def test_a_float64_observation_is_not_outside_of_its_space():
    assert not found_in("test_task_doctor:Wide")


def Wide():
    from odd_environments import Base

    class WideBase(Base):
        def see(self, agent):
            return self.rng.uniform(size=4)

    return WideBase()


def OtherMask(part="info", key="avail_actions"):
    """Gives a mask under a name of its own, in the observation or the info."""
    from odd_environments import Base

    class OtherMaskBase(Base):
        def observation_space(self, agent):
            entry = {key: spaces.MultiBinary(3)} if part == "observation" else {}
            return spaces.Dict({"seen": super().observation_space(agent), **entry})

        def see(self, agent):
            return {"seen": super().see(agent), **({key: np.ones(3, np.int8)} if part == "observation" else {})}

        def info(self, agent):
            return {key: [1, 0, 1]} if part == "info" else {}

    return OtherMaskBase()


@pytest.mark.parametrize("part", ["observation", "info"])
@pytest.mark.parametrize("key", ["avail_actions", "legal_moves"])
def test_a_mask_under_another_name_is_a_problem(part, key):
    found = found_in(f"test_task_doctor:OtherMask:part={part},key={key}")
    said = f"the {part} of agent 'a0' has '{key}', which looks like a mask of its actions: nobody reads it"
    assert any(problem.startswith(said) for problem in found)


def test_what_is_no_mask_by_its_name_or_beside_a_mask_is_no_problem():
    assert not found_in("test_task_doctor:OtherMask:key=position")
    assert not found_in("test_task_doctor:OtherMask:key=action_mask")


def test_what_cannot_be_examined_is_an_error_of_the_configuration():
    with pytest.raises(ConfigError, match="episodes = 0 must be at least 1"):
        doctor(task="rolenav", episodes=0)
    with pytest.raises(ConfigError, match="did you mean 'rolenav'"):
        doctor(task="rolenaf")


# Games in which agents move in turn, as PettingZoo has them


@pytest.mark.parametrize("game, limit", [("tictactoe", 9), ("connect_four", 42)])
def test_a_game_of_turns_is_played_to_its_end(game, limit):
    env = make_env(f"pettingzoo/k24_turns:{game}:episode_limit={limit}", 2)
    generator, ends = torch.Generator().manual_seed(0), 0
    for seed in range(3):
        step, t = env.reset(seed), 0
        while not (step.terminated | step.truncated).all():
            movers = step.avail_actions.sum(dim=2) > 1
            running = ~(step.terminated | step.truncated)
            assert step.avail_actions.any(dim=2).all() and step.alive.all()
            if t < limit - 1:  # with one field left both have one action
                assert movers[running][:, t % 2].all() and not movers[running][:, (t + 1) % 2].any()
                waits = step.avail_actions[running][:, (t + 1) % 2]
                assert waits[:, 0].all() and not waits[:, 1:].any()
            chosen = torch.multinomial(step.avail_actions.flatten(0, 1).float(), 1, generator=generator).view(2, 2)
            step, t = env.step(chosen), t + 1
        ends += int(step.terminated.sum())
        assert not step.truncated.any() or game == "connect_four"
    assert ends == 6


def test_a_game_of_turns_has_no_problem_but_its_opponents():
    assert list(found_in("k24_turns:tictactoe:episode_limit=9")) == [CANCEL]


@pytest.mark.filterwarnings("ignore:The old environment creation API:DeprecationWarning")
@pytest.mark.parametrize("task", ["classic.rps_v2", "butterfly.knights_archers_zombies_v11:max_cycles=20"])
def test_environments_of_pettingzoo_itself_have_no_problem_but_opponents(task):
    lines, problems = examine(f"pettingzoo/pettingzoo.{task}", 2)
    assert list(problems) == ([CANCEL] if "rps" in task else [])
    assert f"random episodes of {15 if 'rps' in task else 20} env steps" in lines[4]


def test_a_task_that_ends_in_an_error_is_closed_all_the_same(monkeypatch):
    from odd_environments import NanLater

    closed = []
    monkeypatch.setattr(NanLater, "close", lambda self: closed.append(True))
    monkeypatch.setattr(NanLater, "step", lambda self, actions: 1 / 0)
    found = found_in("odd_environments:NanLater")
    assert "step 1 raised ZeroDivisionError: division by zero (test_task_doctor.py" in next(iter(found))
    assert len(closed) == 2  # of the one that was played, and of that of PettingZoo's test


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no message")


def test_an_error_that_cannot_be_printed_is_a_problem_like_any_other(monkeypatch):
    from odd_environments import Base

    def step(self, actions):
        raise Unprintable

    monkeypatch.setattr(Base, "step", step)
    first, api_test = found_in("odd_environments:Base")
    said = r"Unprintable: its message cannot be read \(test_task_doctor.py, line \d+\)$"
    assert re.search(f"^step 1 raised {said}", first) and re.search(f"parallel_api_test raised {said}", api_test)
