"""`k24lab replay RUN`: test episodes of a trained team as a film."""

from functools import cache
from pathlib import Path

from jaxtyping import Int
from matplotlib import rc_context
from torch import Tensor
from tqdm import tqdm

from k24lab.analysis.style import method_style, paper_style
from k24lab.envs.base import Step, VecEnv
from k24lab.envs.registry import drawable, make_env
from k24lab.envs.scene import Episode, Scene
from k24lab.errors import ConfigError
from k24lab.inference.freeze import load_learner
from k24lab.lab.config import Config
from k24lab.lab.paths import figures_dir
from k24lab.lab.runs import find_folder, read_config
from k24lab.marl.learner import K24QLearner
from k24lab.marl.policy import play, trained_policy
from k24lab.marl.replay import EpisodeBatch
from k24lab.rendering.stage import Stage
from k24lab.rendering.video import Pixels, check_output, write_video

DPI = (40, 400)  # of the picture of 7.3 x 4.84 inches
END = 1.2  # seconds that the last picture of an episode is seen


class Recorder(VecEnv):
    """Worlds that keep what their first `n` episodes look like from their reset to their end."""

    def __init__(self, env: VecEnv, n: int):
        self.spec, self._env, self._n = env.spec, env, n
        self.scenes: list[list[Scene]] = []
        self._ended = [False] * n

    def reset(self, seed: int) -> Step:
        """Forget what was kept, and start anew."""
        now = self._env.reset(seed)
        self.scenes = [[self._env.scene(e)] for e in range(self._n)]
        self._ended = [False] * self._n
        return now

    def step(self, actions: Int[Tensor, "E N"]) -> Step:
        """A step, and a scene of each episode that had not ended before it."""
        now = self._env.step(actions)
        for e in range(self._n):
            if not self._ended[e]:
                self.scenes[e].append(self._env.scene(e))
                self._ended[e] = bool(now.terminated[e] | now.truncated[e])
        return now

    def episodes(self, batch: EpisodeBatch) -> list[Episode]:
        """What was kept, with the actions and rewards of the same episodes."""
        kept = []
        for e, scenes in enumerate(self.scenes):
            n_steps = len(scenes) - 1
            actions = batch.actions[e, :n_steps].tolist()
            names = [tuple(self._env.action_name(i, a) for i, a in enumerate(row)) for row in actions]
            won = bool(batch.won[e]) if self.spec.has_win else None
            rewards = batch.reward[e, :n_steps].numpy()
            kept.append(Episode(tuple(scenes), tuple(names), rewards, self.spec.episode_limit, won))
        return kept


def replay(
    run: str,
    output: Path | None = None,
    episodes: int = 3,
    seed: int | None = None,
    fps: int = 10,
    dpi: int = 100,
    progress: bool = False,
) -> tuple[Path, str]:
    """Play test episodes with a run's network as it is evaluated, and write them as a film.

    Args:
        run: run folder, or its id.
        output: .gif or .mp4; by default `replay_<run id>.gif` in `figures_dir()`.
        episodes: how many, the run's first test episodes.
        seed: of a run whose test episodes are played in place of this run's own.
        fps: env steps per second.
        dpi: pixels per inch of a picture of 7.3 x 4.84 inches.
        progress: show a bar in a terminal.

    Returns:
        The file, and a line on what it shows.

    Raises:
        ConfigError: an option out of range, a world that cannot be drawn, or no ffmpeg for an .mp4.
        RunError: no run, or one without a checkpoint.
    """
    folder = find_folder(run).resolve()
    config = read_config(folder)
    path = figures_dir() / f"replay_{folder.name}.gif" if output is None else output
    _check(path, episodes, seed, fps, dpi)
    learner, _, t_env = load_learner(folder)
    shown = record(learner, config, t_env, episodes, config.seed if seed is None else seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    trained = f"trained {_steps(t_env)}" + (f" of {_steps(config.t_max)}" if t_env < config.t_max else "")
    title = f"{config.task}, {method_style(config.method).label}, seed {config.seed}"
    with paper_style(), rc_context({"font.family": "DejaVu Sans"}):  # serifs are too fine for a screen
        draw_film(path, shown, title, f"{trained} steps · ", fps, dpi, progress)
    return path, f"{_returns(shown)}; {trained} env steps"


def _check(path: Path, episodes: int, seed: int | None, fps: int, dpi: int) -> None:
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes} must be at least 1")
    if seed is not None and seed < 0:
        raise ConfigError(f"seed = {seed} must be at least 0")
    if not DPI[0] <= dpi <= DPI[1]:
        raise ConfigError(f"dpi = {dpi} must be in {DPI[0]} … {DPI[1]}")
    check_output(path, fps)


def record(learner: K24QLearner, config: Config, t_env: int, n_episodes: int, seed: int) -> list[Episode]:
    """The first test episodes of the run with this seed, acted by the network of `learner` after `t_env` env steps.

    They are played beside as many others as the run tests with: some worlds draw their starts for all at once.

    Raises:
        ConfigError: a world that cannot be drawn.
    """
    kept = list[Episode]()
    env = make_env(drawable(config.task), config.test_episodes)
    try:
        while len(kept) < n_episodes:
            recorder = Recorder(env, min(n_episodes - len(kept), config.test_episodes))
            counter = len(kept) // config.test_episodes
            batch = play(learner, recorder, trained_policy(learner, t_env, seed, counter), seed, counter)
            kept += recorder.episodes(batch)
    except ConfigError as error:
        raise ConfigError(f"task {config.task!r}: {error}") from error
    finally:
        env.close()
    return kept


def draw_film(
    path: Path, episodes: list[Episode], title: str, subtitle: str, fps: int, dpi: int, progress: bool = False
) -> None:
    """Draw each moment of the episodes, one after the other, into a file."""
    moments = [(k, t) for k, episode in enumerate(episodes) for t in range(episode.n_steps + 1)]
    holds = [round(END * fps) if t == episodes[k].n_steps else 1 for k, t in moments]
    with tqdm(total=len(moments), unit="picture", disable=None if progress else True, leave=False) as bar:

        @cache
        def stage(k: int) -> Stage:
            return Stage(episodes[k], title, f"{subtitle}episode {k + 1} of {len(episodes)} · ", dpi)

        def picture(i: int) -> Pixels:
            k, t = moments[i]
            bar.update(max(i + 1 - bar.n, 0))
            return stage(k).picture(t)

        write_video(path, picture, holds, fps)


def _returns(episodes: list[Episode]) -> str:
    returns = ", ".join(f"{episode.rewards.sum(dtype=float):.2f}" for episode in episodes)
    return f"{len(episodes)} episodes, returns {returns}" if len(episodes) > 1 else f"1 episode, return {returns}"


def _steps(n: int) -> str:
    """Env steps, short: 128k, 1.5M."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)
