"""The episodes that a run plays; with the setting `pipeline` in a process of its own, beside the learner's updates."""

import pickle
import weakref
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from k24lab.envs.base import VecEnv
from k24lab.envs.registry import make_env
from k24lab.envs.vector_env import close_all
from k24lab.envs.worker_processes import Child, serve_parent
from k24lab.errors import K24Error, RunError, told
from k24lab.lab.config import Config
from k24lab.marl.learner import K24QLearner, build_learner
from k24lab.marl.policy import acting_policy
from k24lab.marl.replay import EpisodeBatch
from k24lab.marl.rollout import collect
from k24lab.marl.seeding import Stream, derive_seed
from k24lab.ops.library import keep_memory

# Masks that are drawn for acting have a stream of their own for each kind of episodes.
MASKS_OF = {Stream.TRAIN_EPISODES: Stream.ACTING_MASKS, Stream.TEST_EPISODES: Stream.TEST_MASKS}
PATIENCE = 2.0  # seconds that a collector gets to end its rollout and close its environments

Rollout = tuple[int, float, Stream, int]  # env steps that the policy was trained for, epsilon, seeds and their counter


def play_rollout(learner: K24QLearner, env: VecEnv, explore: torch.Generator, rollout: Rollout) -> EpisodeBatch:
    """An episode of each environment with the learner's policy; `explore` is the generator of random actions."""
    (t_env, epsilon, stream, counter), config = rollout, learner.config
    return collect(
        env,
        acting_policy(learner, t_env, derive_seed(config.seed, MASKS_OF[stream], counter)),
        initial_hidden=learner.agent.initial_hidden,
        rows_of=learner.rows,
        epsilon=epsilon,
        seed=derive_seed(config.seed, stream, counter),
        generator=explore,
        agent_id=config.agent_id,
        with_state=config.mixer == "qmix",
    )


class Collector:
    """A process with the environments of training, which plays one rollout at a time with the weights it is sent.

    Its episodes follow from what `ask` is given alone, so a run that is resumed asks for the same ones again.
    """

    def __init__(self, config: Config):
        self._child = Child(_work, (config, torch.get_num_threads()))
        self._finalizer = weakref.finalize(self, self._child.stop, 0.0)
        self._child.start()

    def ask(self, weights: dict[str, Tensor], explore: Tensor, rollout: Rollout) -> None:
        """Let it play: with these weights of the agent network, and this state of the generator of random actions."""
        self._child.send(pickle.dumps((weights, explore, rollout)))

    def receive(self) -> tuple[EpisodeBatch, Tensor]:
        """Wait for the episodes that were asked for, and the generator's state after them.

        Raises:
            K24Error: of the environments, or the process has died.
        """
        try:
            answer = pickle.loads(self._child.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise RunError(
                f"the process that collects episodes has died (exit code {self._child.exit_code()}); "
                "resume the run from its last checkpoint"
            ) from error
        if isinstance(answer, K24Error):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._child.stop(PATIENCE)


class _Player:
    """What plays, in the collector's process."""

    def __init__(self, config: Config):
        self.env = make_env(config.task, config.n_envs, device=config.device)
        self._learner = build_learner(config, self.env.spec)
        self._explore = torch.Generator(config.device)

    def play(self, weights: dict[str, Tensor], explore: Tensor, rollout: Rollout) -> tuple[EpisodeBatch, Tensor]:
        """What `Collector.receive` returns."""
        self._learner.agent.load_state_dict(weights)
        self._explore.set_state(explore)
        return play_rollout(self._learner, self.env, self._explore, rollout), self._explore.get_state()


def _work(config: Config, n_threads: int, connection: Connection, environ: dict[str, str]) -> None:
    """What the collector's process does: requests in; out come episodes, or the error that ends the run."""
    serve_parent(environ)
    torch.set_num_threads(n_threads)
    keep_memory()
    player: _Player | None = None
    try:
        while True:
            asked = pickle.loads(connection.recv_bytes())
            try:
                player = player or _Player(config)
                answer: object = player.play(*asked)
            except BaseException as error:  # what sys.exit raises would end the process without a word
                answer = error if isinstance(error, K24Error) else RunError(told(error))
            connection.send_bytes(pickle.dumps(answer))
    except (EOFError, OSError):  # the parent has closed its end, or is gone
        pass
    finally:
        close_all([player.env] if player else [])
