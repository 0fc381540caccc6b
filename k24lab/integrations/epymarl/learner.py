"""The learners that their run loop trains with: k24lab's own, fed with their batches, mixers and arguments."""

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from k24lab.errors import ConfigError
from k24lab.integrations.epymarl.batches import TheirBatch, to_episodes
from k24lab.integrations.epymarl.controller import K24MAC
from k24lab.marl.learner import K24NQLearner, K24QLearner
from k24lab.marl.replay import EpisodeBatch
from k24lab.ops.library import keep_memory

# Parts of a learner's state in files of their own, as in the checkouts; the rest is in REST_FILE.
FILES = {"agent": "agent.th", "mixer": "mixer.th", "optimizer": "opt.th"}
REST_FILE = "k24.th"


class TheirMixer(nn.Module):
    """A mixer of the checkout, for tensors with k24lab's order of axes."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, q: Float[Tensor, "N T B"], state: Float[Tensor, "T B S"]) -> Float[Tensor, "1 T B"]:
        """`q_tot` of every step."""
        q_tot = self.mixer(q.permute(2, 1, 0).contiguous(), state.transpose(0, 1).contiguous())  # [B, T, 1]
        return q_tot.permute(2, 1, 0)


def their_mixer(args: SimpleNamespace) -> nn.Module | None:
    """The checkout's mixer of that name; None without one. pymarl2's QMIX is the one of its own `nq_learner`."""
    if args.mixer in (None, "none"):
        return None
    if args.mixer == "vdn":
        return TheirMixer(importlib.import_module("modules.mixers.vdn").VDNMixer())
    if importlib.util.find_spec("modules.mixers.nmix"):
        return TheirMixer(importlib.import_module("modules.mixers.nmix").Mixer(args))
    return TheirMixer(importlib.import_module("modules.mixers.qmix").QMixer(args))


class EpymarlQLearner(K24QLearner):
    """`K24QLearner` behind the interface of their learners.

    `logger` gets every metric, under the names that k24lab's own runs log; `scheme` is not used.
    """

    def __init__(self, mac: object, scheme: dict[str, Any], logger: Any, args: SimpleNamespace):
        if not isinstance(mac, K24MAC):
            raise ConfigError(f"learner = {args.learner!r} needs mac = 'k24_mac', not {args.mac!r}")
        super().__init__(mac.settings.config, mac.spec, agent=mac.agent, mixer=their_mixer(args))
        keep_memory()
        self.args, self.mac, self.logger = args, mac, logger
        self.log_stats_t = -args.learner_log_interval - 1
        # epymarl's switches and its running moments.
        self.moments: dict[str, Any] = {
            name: importlib.import_module("components.standarize_stream").RunningMeanStd(shape=(1,), device=args.device)
            for name in ("rewards", "returns")
            if getattr(args, f"standardise_{name}", False)
        }

    def train(self, batch: TheirBatch, t_env: int, episode_num: int, per_weight: Any = None) -> None:
        """One update; `episode_num`, and `per_weight` of prioritised replay (which is refused), are not used."""
        log = t_env - self.log_stats_t >= self.args.learner_log_interval
        metrics = self.update(self._standardised(to_episodes(batch, self.mac.settings)), t_env, log)
        if log:
            for name, value in metrics.items():
                self.logger.log_stat(name, value, t_env)
            self.log_stats_t = t_env

    def _standardised(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """The same with rewards of mean 0 and variance 1 over the run, where the checkout asks for it."""
        if "rewards" not in self.moments:
            return episodes
        moments = self.moments["rewards"]
        moments.update(episodes.reward[episodes.filled].unsqueeze(1))
        return dataclasses.replace(episodes, reward=(episodes.reward - moments.mean) / moments.var.sqrt())

    def _targets(self, batch: EpisodeBatch, next_value: Float[Tensor, "K T B"]) -> Float[Tensor, "K T B"]:
        """The targets, with standardise_returns on the scale on which the network learns them."""
        if "returns" not in self.moments:
            return super()._targets(batch, next_value)
        moments = self.moments["returns"]
        targets = super()._targets(batch, next_value * moments.var.sqrt() + moments.mean)
        moments.update(targets[batch.filled.T.expand_as(targets)].unsqueeze(1))
        return (targets - moments.mean) / moments.var.sqrt()

    def cuda(self) -> None:
        """Nothing: with use_cuda everything was built on the GPU."""

    def save_models(self, path: str) -> None:
        """Write all that training goes on from but the replay buffer, which is the checkout's."""
        state = self.state_dict()
        for part, name in FILES.items():
            torch.save(state.pop(part), Path(path) / name)
        moments = {name: vars(each) for name, each in self.moments.items()}
        torch.save(state | {"moments": moments}, Path(path) / REST_FILE)

    def load_models(self, path: str) -> None:
        """Read it back."""
        device = self.config.device
        state = torch.load(Path(path) / REST_FILE, map_location=device, weights_only=True)
        for part, name in FILES.items():
            state[part] = torch.load(Path(path) / name, map_location=device, weights_only=True)
        state["generator"] = state["generator"].cpu()  # where torch wants it, whatever it generates on
        self.load_state_dict(state)
        for name, each in self.moments.items():
            vars(each).update(state["moments"].get(name, {}))


class EpymarlNQLearner(EpymarlQLearner, K24NQLearner):
    """The same with the TD(lambda) targets of `K24NQLearner`: pymarl2's kind of learner."""
