"""`k24lab replay`: test episodes of a trained team as an animated GIF or an MP4 video."""

import contextlib
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib import rc_context
from matplotlib.ticker import EngFormatter
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from k24lab.analysis.style import method_style, paper_style
from k24lab.envs.base import Step, VecEnv
from k24lab.envs.registry import drawable, make_env
from k24lab.envs.scene import Episode
from k24lab.errors import ConfigError, RunError
from k24lab.inference.actor import Actor
from k24lab.inference.freeze import FrozenTeam, load_learner, load_team
from k24lab.lab.config import Config
from k24lab.lab.paths import figures_dir
from k24lab.lab.runs import atomic_write, find_folder, read_config
from k24lab.marl.learner import K24QLearner
from k24lab.marl.policy import Policy, play, trained_policy
from k24lab.marl.replay import EpisodeBatch
from k24lab.rendering.draw_episode import EpisodeDrawing

Frame = UInt8[np.ndarray, "H W 3"]

FORMATS = (".gif", ".mp4")
DPI = 100  # of the frame of 7.3 x 4.84 inches
FPS = (1, 50)  # a GIF counts hundredths of a second, and browsers slow down what is faster
LAST_FRAME_SECONDS = 1.2  # of each episode
PALETTE_FRAMES = 32  # of a GIF, whose colours are chosen together: more take 6 MB each
N_COLORS = 255  # of a GIF's 256; Pillow takes one for what has not changed
# For browsers and slides, which want even sizes and this layout of colours; the same bytes every time.
H264 = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
PLAIN = ["-movflags", "+faststart", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]


def replay(
    run: str, output: Path | None = None, episodes: int = 3, fps: int = 10, progress: bool = False
) -> tuple[Path, str]:
    """Play a run's first test episodes with its network as it is evaluated, and write them as an animation.

    `run` is its folder or id, `output` a .gif or .mp4 (by default `replay_<run id>.gif` in `figures_dir()`), `fps` env
    steps per second; `progress` shows a bar in a terminal. Returns the file, and a line on what it shows.
    """
    folder = find_folder(run).resolve()
    config = read_config(folder)
    path = figures_dir() / f"replay_{folder.name}.gif" if output is None else output
    _check(path, episodes, fps)
    learner, _, t_env = load_learner(folder)
    return path, _animate(record(learner, config, t_env, episodes), config, t_env, path, fps, progress)


def replay_team(
    team: str, output: Path | None = None, episodes: int = 3, fps: int = 10, progress: bool = False
) -> tuple[Path, str]:
    """Play a frozen team as `replay` does its run: the same episodes, acted by `k24lab.inference.actor.Actor`.

    `team` is the name of one that comes with the package, or its file; the animation is by default `replay_<team>.gif`.
    """
    frozen = load_team(team)
    path = figures_dir() / f"replay_{Path(team).stem}.gif" if output is None else output
    _check(path, episodes, fps)
    config, t_env = frozen.config, frozen.t_env
    return path, _animate(record(frozen, config, t_env, episodes), config, t_env, path, fps, progress)


def _animate(played: Sequence[Episode], config: Config, t_env: int, path: Path, fps: int, progress: bool) -> str:
    """Write the animation of these episodes, and say what it shows."""
    short = EngFormatter(sep="")  # 128k, 1.5M
    trained = f"trained {short(t_env)}" + (f" of {short(config.t_max)}" if t_env < config.t_max else "")
    title = f"{config.task}, {method_style(config.method).label}, seed {config.seed}"
    subtitles = [f"{trained} steps · episode {k} of {len(played)} · " for k in range(1, len(played) + 1)]
    drawings = (EpisodeDrawing(e, title, subtitle, DPI) for e, subtitle in zip(played, subtitles, strict=True))
    frames = (drawing.frame(t) for drawing in drawings for t in range(drawing.n_frames))
    holds = [hold for episode in played for hold in [1] * episode.n_steps + [round(LAST_FRAME_SECONDS * fps)]]
    bar = tqdm(frames, total=len(holds), unit="frame", disable=None if progress else True, leave=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with paper_style(), rc_context({"font.family": "DejaVu Sans"}):  # serifs are too fine for a screen
        write_animation(path, iter(bar), holds, fps)
    returns = ", ".join(f"{episode.rewards.sum(dtype=float):.2f}" for episode in played)
    return f"episodes: {len(played)}, return {returns}; {trained} env steps"


def _check(path: Path, episodes: int, fps: int) -> None:
    """Refuse what could not be written, before anything is played."""
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes} must be at least 1")
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise ConfigError(f"output = {str(path)!r} must be a file that ends in {' or '.join(FORMATS)}")
    if not FPS[0] <= fps <= FPS[1]:
        raise ConfigError(f"fps = {fps} must be in {FPS[0]} … {FPS[1]} frames per second")
    if path.suffix.lower() == ".mp4":
        find_ffmpeg()


def record(team: K24QLearner | FrozenTeam, config: Config, t_env: int, n_episodes: int) -> list[Episode]:
    """The first test episodes of the run, acted by its network after `t_env` env steps.

    They are played beside as many others as the run tests with: some environments draw their starts for all at once.
    """
    recorded = list[Episode]()
    env = make_env(drawable(config.task), config.test_episodes)
    try:
        while len(recorded) < n_episodes:
            recorder = SceneRecorder(env, min(n_episodes - len(recorded), config.test_episodes))
            counter = len(recorded) // config.test_episodes
            if isinstance(team, FrozenTeam):
                actor = Actor(team)
                policy = Policy(actor.act, actor.initial_hidden)
            else:
                policy = trained_policy(team, t_env, config.seed, counter)
            batch = play(team, recorder, policy, config.seed, counter)
            recorded += recorder.episodes(batch)
    except ConfigError as error:
        raise ConfigError(f"task {config.task!r}: {error}") from error
    finally:
        env.close()
    return recorded


class SceneRecorder(VecEnv):
    """Environments that keep the scenes of their first `n` episodes, from their reset to their end."""

    def __init__(self, env: VecEnv, n: int):
        self.spec, self._env, self._n = env.spec, env, n

    def reset(self, seed: int) -> Step:
        """Start anew."""
        self._now = self._env.reset(seed)
        self._scenes = [[self._env.scene(e)] for e in range(self._n)]
        return self._now

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """A step, and a scene of each episode that had not ended before it."""
        ended = self._now.terminated | self._now.truncated
        self._now = self._env.step(actions)
        for e, scenes in enumerate(self._scenes):
            if not ended[e]:
                scenes.append(self._env.scene(e))
        return self._now

    def episodes(self, batch: EpisodeBatch) -> list[Episode]:
        """The scenes, with the actions and rewards of the same episodes."""
        episodes = []
        for e, scenes in enumerate(self._scenes):
            n_steps = len(scenes) - 1
            actions = batch.actions[e, :n_steps].tolist()
            names = tuple(tuple(self._env.action_name(i, a) for i, a in enumerate(row)) for row in actions)
            won = bool(batch.won[e]) if self.spec.has_win else None
            rewards = batch.reward[e, :n_steps].numpy()
            episodes.append(Episode(tuple(scenes), names, rewards, self.spec.episode_limit, won))
        return episodes


def write_animation(path: Path, frames: Iterator[Frame], holds: Sequence[int], fps: int) -> None:
    """Write frames of one size to a .gif or .mp4, which is there whole or not at all.

    `holds` says how many times 1/fps seconds each frame is seen. That ffmpeg fails is a RunError.
    """
    if path.suffix.lower() == ".mp4":
        repeated = (frame for frame, hold in zip(frames, holds, strict=True) for _ in range(hold))
        _write_mp4(path, repeated, fps)
        return
    images = _paletted(frames)
    durations = [round(100 * hold / fps) * 10 for hold in holds]  # milliseconds
    with atomic_write(path) as file:
        next(images).save(file, format="GIF", save_all=True, append_images=images, duration=durations, loop=0)


def _paletted(frames: Iterator[Frame]) -> Iterator[Image.Image]:
    """The frames in colours that Pillow chooses for many of them at once: what stands still must not flicker."""
    while block := list(itertools.islice(frames, PALETTE_FRAMES)):
        column = Image.fromarray(np.concatenate(block)).quantize(N_COLORS, Image.Quantize.MAXCOVERAGE)
        height = column.height // len(block)
        for top in range(0, column.height, height):
            yield column.crop((0, top, column.width, top + height))


def _write_mp4(path: Path, frames: Iterator[Frame], fps: int) -> None:
    first = next(frames)
    size = f"{first.shape[1]}x{first.shape[0]}"
    with tempfile.TemporaryDirectory() as folder:
        made, log = Path(folder) / "animation.mp4", Path(folder) / "log"  # ffmpeg cannot write an MP4 to a pipe
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
        command = [find_ffmpeg(), "-y", "-loglevel", "error", *raw, *H264, *PLAIN, str(made)]
        with (
            contextlib.suppress(BrokenPipeError),  # ffmpeg has ended: its log says why
            log.open("wb") as errors,
            # A session of its own: Ctrl-C ends this process, which then ends ffmpeg.
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, start_new_session=True) as process,
        ):
            assert process.stdin is not None
            try:
                for frame in itertools.chain([first], frames):
                    process.stdin.write(frame.tobytes())
            except KeyboardInterrupt:  # for which Popen would wait a quarter of a second only, and leave it running
                process.kill()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
                raise
        if process.returncode:
            said = log.read_text(errors="replace").strip()[-300:]
            raise RunError(f"ffmpeg ended with {process.returncode}: {said}")
        with made.open("rb") as source, atomic_write(path) as file:
            shutil.copyfileobj(source, file)


def find_ffmpeg() -> str:
    """The program that writes MP4 files: the system's, or the one that comes with imageio-ffmpeg (else ConfigError)."""
    if program := shutil.which("ffmpeg"):
        return program
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # it is not installed, or has no program for this machine
        message = "an .mp4 needs ffmpeg: install it, or pip install 'k24lab[video]'; a .gif needs neither"
        raise ConfigError(message) from None
