"""`k24lab replay`: scenes are what the environments hold, the policy is the trained one, and the animation is whole."""

import importlib.util
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import alive
from small_pettingzoo import ToyEnv
from test_cli import assert_one_line_error, k24lab  # noqa: F401

from k24lab.envs.registry import drawable, make_env
from k24lab.envs.scene import Scene
from k24lab.errors import ConfigError, RunError
from k24lab.inference.freeze import load_learner
from k24lab.lab.runs import CHECKPOINT, RunFolder
from k24lab.lab.train import Trainer, train
from k24lab.rendering import animation
from k24lab.rendering.animation import record, replay, write_animation

SMAX = pytest.mark.skipif(importlib.util.find_spec("jaxmarl") is None, reason="JaxMARL is not installed: extra smax")
SMALL = {"episodes": 1}


@pytest.fixture(autouse=True)
def small_frames(monkeypatch):
    monkeypatch.setattr(animation, "DPI", 40)


@pytest.fixture
def make_run(tiny_config):
    """Train a tiny run: its folder."""

    def make(**changes) -> Path:
        return train(tiny_config(**{"t_max": 200, "method": "k24"} | changes), "animations", progress=False)

    return make


def where(scene: Scene, kind: str) -> torch.Tensor:
    return torch.tensor([(thing.x, thing.y) for thing in scene.of_kind(kind)])


def test_a_scene_of_rolenav_is_what_its_observations_say():
    env = make_env("rolenav:n_agents=4", n_envs=3)
    now = env.reset(5)
    now = env.step(torch.tensor([[1, 2, 3, 4]] * 3))
    for e in range(3):
        scene = env.scene(e)
        position = now.obs[e, :, :2]
        assert torch.equal(where(scene, "agent"), position)
        goals = now.obs[e, 0, 2:].view(4, 2) + position[0]
        assert torch.allclose(where(scene, "goal"), goals, atol=1e-6)
        assert [goal.owners for goal in scene.of_kind("goal")] == [(0,), (1,), (2,), (3,)]
        assert [agent.owners for agent in scene.of_kind("agent")] == [(0,), (1,), (2,), (3,)]
        assert (scene.low, scene.high) == ((-1.0, -1.0), (1.0, 1.0))
    assert [env.action_name(0, a) for a in range(5)] == ["stay", "→", "←", "↑", "↓"]


def test_goals_of_roles_and_types_belong_to_all_their_agents():
    env = make_env("rolenav:n_agents=5,n_roles=2", n_envs=1)
    env.reset(0)
    assert [goal.owners for goal in env.scene(0).of_kind("goal")] == [(0, 2, 4), (1, 3)]
    env = make_env("rolenav:n_agents=5,n_types=3", n_envs=2)
    types = env.reset(1).unit_type
    for e in range(2):
        owners = [goal.owners for goal in env.scene(e).of_kind("goal")]
        assert owners == [tuple((types[e] == k).nonzero().flatten().tolist()) for k in range(3)]
        assert [agent.label for agent in env.scene(e).of_kind("agent")] == [f"goal {k}" for k in types[e].tolist()]


def test_arrows_point_to_where_agents_go():
    arrows = {"→": (1, 0), "←": (-1, 0), "↑": (0, 1), "↓": (0, -1)}
    arrows |= {"↗": (1, 1), "↖": (-1, 1), "↘": (1, -1), "↙": (-1, -1)}
    for task, n_actions in (("rolenav", 5), ("mpe2/simple_spread", 5), ("vmas/navigation", 9)):
        env = make_env(task, n_envs=n_actions)
        env.reset(3)
        before = [where(env.scene(e), "agent")[0] for e in range(n_actions)]
        for _ in range(2):  # of mpe2 the first only gives speed
            env.step(torch.arange(n_actions)[:, None].expand(-1, env.spec.n_agents))
        names = [env.action_name(0, a) for a in range(n_actions)]
        assert len(set(names)) == n_actions
        for e, name in enumerate(names):
            if name in arrows and not (task == "rolenav" and before[e].abs().max() > 0.75):
                moved = where(env.scene(e), "agent")[0] - before[e]
                assert torch.dot(moved, torch.tensor(arrows[name], dtype=torch.float32)) > 0, (task, name)


def test_a_scene_of_mpe_has_the_scripted_prey_as_opponent():
    env = make_env("mpe2/simple_tag", n_envs=2)
    now = env.reset(0)
    scene = env.scene(1)
    assert torch.allclose(where(scene, "agent"), now.obs[1, :, 2:4].double().float(), atol=1e-6)
    assert len(scene.of_kind("opponent")) == 1 and len(scene.of_kind("obstacle")) == 2
    assert scene.of_kind("opponent")[0].owners == ()
    env = make_env("mpe2/simple_speaker_listener", n_envs=1)
    env.reset(0)
    assert [goal.owners for goal in env.scene(0).of_kind("goal")] == [(1,)]  # what the speaker says is the listener's
    assert [agent.label for agent in env.scene(0).of_kind("agent")] == ["speaker", "listener"]
    assert (env.action_name(0, 2), env.action_name(1, 2)) == ("says 2", "→")
    env = make_env("mpe2/simple_reference", n_envs=1)
    assert env.action_name(0, 13) == "↓ says 2"


def test_scenes_of_vmas_have_goals_of_their_agents_and_no_eaten_food():
    env = make_env("vmas/navigation", n_envs=2)
    now = env.reset(0)
    assert torch.equal(where(env.scene(1), "agent"), now.obs[1, :, :2])
    assert [goal.owners for goal in env.scene(1).of_kind("goal")] == [(0,), (1,), (2,)]
    env = make_env("vmas/dispersion", n_envs=2)
    env.reset(0)
    assert [len(env.scene(e).of_kind("landmark")) for e in range(2)] == [4, 4]
    with torch.inference_mode():
        env._env.world.landmarks[0].is_rendering[1] = False
    assert [len(env.scene(e).of_kind("landmark")) for e in range(2)] == [4, 3]
    env = make_env("vmas/balance", n_envs=1)
    env.reset(0)
    line = next(thing for thing in env.scene(0).of_kind("object") if thing.label == "line")
    assert line.box is not None and line.box[1] == 0


@SMAX
def test_a_scene_of_smax_has_both_sides_and_their_health():
    env = make_env("smax/3m", n_envs=2)
    env.reset(0)
    scene = env.scene(0)
    assert [unit.label for unit in scene.of_kind("agent")] == ["marine"] * 3
    assert [unit.label for unit in scene.of_kind("opponent")] == ["e0", "e1", "e2"]
    assert {unit.health for unit in scene.things} == {1.0} and all(unit.alive for unit in scene.things)
    assert where(scene, "agent")[:, 0].max() < where(scene, "opponent")[:, 0].min()
    assert [env.action_name(0, a) for a in (0, 4, 7)] == ["↑", "stop", "attack e2"]
    now = env.reset(0)
    for _ in range(60):
        now = env.step(now.avail_actions.long().argmax(-1))
    assert [unit.alive for unit in env.scene(0).of_kind("agent")] == now.alive[0].tolist()


@pytest.mark.parametrize("method", ["k24", "k24-literal", "fups-id", "nops", "kaleidoscope", "multih"])
def test_the_animation_is_of_the_runs_own_evaluation(method, make_run):
    folder = make_run(method=method)
    learner, config, t_env = load_learner(folder)
    trainer = Trainer(config, RunFolder(folder, config))
    own = trainer._test_batch()
    trainer.close()
    shown = record(learner, config, t_env, 4)
    assert [episode.rewards.sum(dtype=np.float64) for episode in shown] == pytest.approx(own.returns.tolist(), abs=1e-5)
    for e, episode in enumerate(shown):
        assert len(episode.scenes) == episode.n_steps + 1 == 26
        assert torch.equal(torch.stack([where(s, "agent") for s in episode.scenes]), own.obs[e, :, :, :2])
        names = ["stay", "→", "←", "↑", "↓"]
        assert episode.actions == tuple(tuple(names[a] for a in row) for row in own.actions[e].tolist())


def test_more_episodes_than_the_run_was_tested_on_come_from_further_starts(make_run):
    learner, config, _ = load_learner(make_run(test_episodes=2))
    starts = [where(episode.scenes[0], "agent") for episode in record(learner, config, 0, 5)]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 5
    again = [where(episode.scenes[0], "agent") for episode in record(learner, config, 0, 1)]
    assert torch.equal(again[0], starts[0])


def test_a_gif_has_a_picture_for_every_moment_and_the_same_bytes_each_time(make_run, home):
    folder = make_run()
    path, said = replay(str(folder), episodes=2)
    assert path == home / "figures" / f"replay_{folder.name}.gif"
    assert said.startswith("episodes: 2, return ") and said.endswith("; trained 200 env steps")
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (2 * 26, (292, 193))
        times = []
        for k in range(gif.n_frames):
            gif.seek(k)
            times.append(gif.info["duration"])
        assert times == ([100] * 25 + [1200]) * 2
        assert gif.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    first = path.read_bytes()
    assert replay(folder.name, episodes=2)[0].read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("task", ["mpe2/simple_tag", "mpe2/simple_speaker_listener", "vmas/balance:episode_limit=5"])
def test_environments_are_animated(task, make_run, tmp_path):
    folder = make_run(task=task, test_episodes=2, n_envs=2)
    path, _ = replay(str(folder), tmp_path / "new" / "animation.GIF", **SMALL)
    with Image.open(path) as gif:
        assert gif.n_frames == 1 + load_learner(folder)[0].spec.episode_limit


class Silent(ToyEnv):
    """Nothing that can be drawn."""

    max_cycles = 3

    def __init__(self):
        super().__init__()


class Painter(Silent):
    """Draws itself: a red picture."""

    def __init__(self, render_mode: str | None = None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.full((20, 30, 3), (200, 30, 60), np.uint8)


def test_an_environment_that_draws_itself_is_animated_and_one_that_does_not_is_named(make_run, tmp_path):
    painter, silent = (f"pettingzoo/test_animation:{name}" for name in ("Painter", "Silent"))
    assert drawable(painter) == f"{painter}:render_mode=rgb_array"
    assert drawable(f"{painter}:episode_limit=2") == f"{painter}:episode_limit=2,render_mode=rgb_array"
    for task in ("rolenav:n_agents=4", silent, "mpe2/simple_spread"):
        assert drawable(task) == task
    tiny = {"test_episodes": 1, "n_envs": 1, "method": "fups", "t_max": 30}
    folder = make_run(task=painter, **tiny)
    with Image.open(replay(str(folder), tmp_path / "a.gif", **SMALL)[0]) as gif:
        assert gif.n_frames == 4
        colors = {color: count for count, color in gif.convert("RGB").getcolors(1 << 20)}
    assert colors[200, 30, 60] > 10_000
    folder = make_run(task=silent, **tiny)
    with pytest.raises(ConfigError, match=r"task 'pettingzoo/.*Silent': .* cannot be drawn: .*rgb_array"):
        replay(str(folder), tmp_path / "b.gif", **SMALL)
    assert [file.name for file in tmp_path.glob("*.gif")] == ["a.gif"]


def still(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def interrupted():
    yield from map(still, range(3))
    raise KeyboardInterrupt


def test_an_interrupted_animation_leaves_what_was_there(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_animation(tmp_path / "a.gif", interrupted(), [1] * 10, 10)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.gif", b"old")]


def fake_ffmpeg(folder: Path, body: str) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    program.chmod(0o755)


def test_an_mp4_is_piped_to_ffmpeg_with_each_frame_as_often_as_it_is_held(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path, "open(sys.argv[-1], 'wb').write(sys.stdin.buffer.read())")
    monkeypatch.setenv("PATH", str(tmp_path))
    write_animation(tmp_path / "a.mp4", map(still, range(2)), [1, 3], 10)
    assert (tmp_path / "a.mp4").read_bytes() == bytes([0] * 72 + [1] * 72 * 3)
    with pytest.raises(KeyboardInterrupt):
        write_animation(tmp_path / "b.mp4", interrupted(), [1] * 10, 10)
    fake_ffmpeg(tmp_path, "sys.exit('no such encoder')")
    with pytest.raises(RunError, match="ffmpeg ended with 1: no such encoder"):
        write_animation(tmp_path / "b.mp4", iter([np.zeros((400, 600, 3), np.uint8)] * 2), [1, 3], 10)
    assert {file.name for file in tmp_path.iterdir()} == {"ffmpeg", "a.mp4"}


def test_ffmpeg_does_not_outlive_an_interrupted_animation(tmp_path, monkeypatch):
    told = tmp_path / "pid"
    body = f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\nsys.stdin.buffer.read()\ntime.sleep(60)"
    fake_ffmpeg(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))

    def frames():
        yield still(0)
        while not told.exists() or not told.read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_animation(tmp_path / "a.mp4", frames(), [1] * 10, 10)
    assert not alive(int(told.read_text()))


@pytest.mark.skipif(
    not (shutil.which("ffmpeg") or importlib.util.find_spec("imageio_ffmpeg")), reason="no ffmpeg: extra video"
)
def test_an_mp4_is_one(make_run, tmp_path):
    folder = make_run()
    path, _ = replay(str(folder), tmp_path / "a.mp4", **SMALL)
    assert path.read_bytes()[4:8] == b"ftyp"
    assert replay(str(folder), tmp_path / "b.mp4", **SMALL)[0].read_bytes() == path.read_bytes()


def test_without_ffmpeg_an_mp4_is_refused_before_anything_is_played(make_run, tmp_path, monkeypatch):
    folder = make_run()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(animation, "load_learner", lambda folder: pytest.fail("too late"))
    with pytest.raises(ConfigError, match=r"an \.mp4 needs ffmpeg: install it, or pip install 'k24lab\[video\]'"):
        replay(str(folder), tmp_path / "a.mp4")


BAD = [
    ({"episodes": 0}, "episodes = 0 must be at least 1"),
    ({"fps": 0}, "fps = 0 must be in 1 … 50"),
    ({"fps": 51}, "fps = 51 must be in 1 … 50"),
    ({"output": Path("team.avi")}, "output = 'team.avi' must be a file that ends in .gif or .mp4"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_bad_options_are_named(options, said, make_run):
    folder = make_run()
    with pytest.raises(ConfigError) as error:
        replay(str(folder), **options)
    assert said in str(error.value)


def test_a_run_without_a_network_is_refused(make_run):
    folder = make_run()
    (folder / CHECKPOINT).unlink()
    with pytest.raises(RunError, match="has no checkpoint: it was imported, without its network"):
        replay(str(folder))
    (folder / "DONE").unlink()
    with pytest.raises(RunError, match="has no checkpoint: nothing is trained yet"):
        replay(str(folder))


def test_an_unfinished_run_plays_as_its_last_checkpoint(tiny_config, monkeypatch, tmp_path):
    original = Trainer._save_checkpoint

    def save(self, final=False):
        original(self, final)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    config = tiny_config(t_max=1600)
    with pytest.raises(KeyboardInterrupt):
        train(config, "animations", progress=False)
    (folder,) = (tmp_path / "runs" / "animations").iterdir()
    assert "; trained 400 of 1.6k env steps" in replay(str(folder), **SMALL)[1]


def test_the_command_writes_the_animation_and_says_what_it_shows(k24lab, make_run, home):  # noqa: F811
    folder = make_run()
    code, out, _ = k24lab("replay", folder.name, "--episodes", 1)
    assert code == 0 and out.splitlines()[0].startswith("episodes: 1, return ")
    assert Path(out.splitlines()[1]) == home / "figures" / f"replay_{folder.name}.gif"
    assert_one_line_error(k24lab("replay", folder.name[:-1] + "x"), "did you mean", folder.name)
    assert_one_line_error(k24lab("replay", folder.name, "--fps", 99), "fps = 99 must be in 1 … 50")
