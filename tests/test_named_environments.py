"""Environments by their import path: modules and factories, and what is told where there is none."""

import sys
from pathlib import Path

import pytest
from small_pettingzoo import play, same

from k24lab.envs.mpe2 import MPE2_TASKS
from k24lab.envs.pettingzoo_import import import_builder
from k24lab.envs.registry import make_env, task_names
from k24lab.errors import ConfigError

FACTORIES = """
import sys
sys.path.insert(0, {folder!r})
from small_pettingzoo import ToyEnv

def build(exits=None):
    return ToyEnv(exits)

def loose(**options):
    return ToyEnv(**options)

def nothing():
    return None

def broken(size):
    raise ValueError(f"size {{size}} is odd")

limit = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch) -> str:
    """Name of a module with factories, for this test only."""
    (tmp_path / "k24_factories.py").write_text(FACTORIES.format(folder=str(Path(__file__).parent)))
    (tmp_path / "k24_package").mkdir()
    (tmp_path / "k24_package" / "__init__.py").touch()
    (tmp_path / "k24_package" / "needy.py").write_text("import a_package_that_is_missing")
    (tmp_path / "k24_package" / "exits.py").write_text("import sys\nsys.exit(0)")
    (tmp_path / "k24_package" / "wrong.py").write_text("def")
    monkeypatch.syspath_prepend(tmp_path)
    yield "k24_factories"
    for name in ("k24_factories", "k24_package"):
        sys.modules.pop(name, None)


def test_a_module_with_parallel_env_can_be_named():
    foreign = make_env("pettingzoo/mpe2.simple_spread_v3:N=4,max_cycles=6", n_envs=2)
    assert same(play(foreign, seed=0), play(make_env("mpe2/simple_spread:N=4,max_cycles=6", n_envs=2), seed=0))


def test_a_factory_can_be_named(factories: str):
    for path in (f"{factories}.build", f"{factories}:build", f"{factories}:ToyEnv", f"{factories}.loose"):
        env = make_env(f"pettingzoo/{path}:episode_limit=2", n_envs=2)
        assert env.spec.episode_limit == 2 and len(play(env, seed=0)) == 3
        assert import_builder(path).build(n_envs=1, exits={"a": (1, "terminated")}).spec.episode_limit == 100


@pytest.mark.parametrize(
    "path, said",
    [
        (
            "no_such_package.thing",
            "cannot import 'no_such_package.thing': ModuleNotFoundError: No module named 'no_such_package",
        ),
        ("no_such_package", "cannot import 'no_such_package'"),
        ("k24_factories.absent", "cannot import .*has no attribute 'absent'"),
        ("k24_package.needy", "No module named 'a_package_that_is_missing'"),
        ("k24_factories.limit", "neither a function or class"),
        ("k24_factories", "nor a module with parallel_env"),
        ("pettingzoo.mpe.simple_spread_v3", "MPE has been moved"),
        ("mpe2.simple_spread_v2", "no attribute 'simple_spread_v2'"),
        ("pettingzoo.classic.rps_v1", "an old version of the module"),
        ("pettingzoo.classic.gin_rummy_v4", "gin_rummy was removed from PettingZoo"),
        ("pettingzoo.classic.tictactoe.tictactoe", "tictactoe_v3 names no episode limit"),
        ("k24_package.exits", r"cannot import 'k24_package.exits': SystemExit: 0 \(exits.py, line 2\)"),
        ("k24_package.wrong", r"cannot import 'k24_package.wrong': SyntaxError: "),
        ("k24_factories.nothing", "None is no PettingZoo parallel environment: it lacks possible_agents"),
        ("builtins.dict:x=1", "no PettingZoo parallel environment: it lacks possible_agents"),  # no signature
        ("k24_factories.build:exit=3", "unknown option 'exit'; did you mean 'exits'.*episode_limit"),
        ("k24_factories.loose:exit=3", "refuses the options.*exit"),
        ("k24_factories.broken:size=3", "size 3 is odd"),
        ("k24_factories.broken", "missing 1 required"),
        ("mpe2.simple_spread_v3:continuous_actions=True", "continuous_actions=False"),
        ("", "cannot import"),
    ],
)
def test_a_path_or_option_that_cannot_be_used_is_told(factories: str, path: str, said: str):
    with pytest.raises(ConfigError, match=said):
        make_env(f"pettingzoo/{path}", n_envs=1)


def test_every_named_task_can_be_built():
    assert {"rolenav", *(f"mpe2/{name}" for name in MPE2_TASKS)} <= set(task_names())
    with pytest.raises(ConfigError, match="did you mean 'mpe2/simple_tag'"):
        make_env("mpe2/simple_tags", n_envs=1)
