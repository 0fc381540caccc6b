"""A checkout with the interfaces of epymarl and pymarl2 that the integration uses, written for the tests."""

from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

SELECTORS = '''
import torch


class EpsilonGreedy:
    """The best available action, or any available one."""

    def __init__(self, args):
        self.args = args

    def select_action(self, agent_inputs, avail_actions, t_env, test_mode=False):
        epsilon = 0.0 if test_mode else max(0.05, 1 - t_env / self.args.epsilon_anneal_time)
        allowed = avail_actions > 0
        best = agent_inputs.masked_fill(~allowed, -torch.inf).argmax(dim=2)
        other = (torch.rand(allowed.shape) * allowed).argmax(dim=2)
        return torch.where(torch.rand(best.shape) < epsilon, other, best)


REGISTRY = {"epsilon_greedy": EpsilonGreedy}
'''
STANDARDISE = '''
import torch


class RunningMeanStd:
    """Mean and variance of all that was ever seen."""

    def __init__(self, epsilon=1e-4, shape=(), device="cpu"):
        self.mean, self.var, self.count = torch.zeros(shape), torch.ones(shape), epsilon

    def update(self, arr):
        n, total = len(arr), self.count + len(arr)
        mean, var = arr.mean(dim=0), arr.var(dim=0)
        delta = mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean = self.mean + delta * n / total
        self.count = total
'''
VDN = '''
import torch


class VDNMixer(torch.nn.Module):
    """Sum over agents of [batch, time, agents]."""

    def forward(self, agent_qs, batch):
        return agent_qs.sum(dim=2, keepdim=True)
'''
# The interface of QMIX; a weight per agent, from the state.
QMIX = """
import torch


class {name}(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.state_dim, self.n_agents = args.state_shape, args.n_agents
        self.weigh = torch.nn.Linear(self.state_dim, self.n_agents)

    def forward(self, agent_qs, states):
        weights = self.weigh(states.view(-1, self.state_dim)).abs().view(-1, self.n_agents)
        mixed = (agent_qs.view(-1, self.n_agents) * weights).sum(dim=1)
        return mixed.view(len(agent_qs), -1, 1)
"""
MAIN = """
import sys
from types import SimpleNamespace

import torch
import yaml

sys.path.append("{tests}")
import fake_epymarl
from controllers import REGISTRY as controllers
from learners import REGISTRY as learners

torch.manual_seed(0)
torch.set_num_threads(1)
name = sys.argv[1].removeprefix("--config=")
with open("src/config/default.yaml") as default, open(f"src/config/algs/{{name}}.yaml") as algorithm:
    settings = yaml.safe_load(default) | yaml.safe_load(algorithm)
args = SimpleNamespace(**settings | {{"device": "cpu", "n_agents": 2, "n_actions": 3, "state_shape": 4}})
mac = controllers[args.mac](fake_epymarl.SCHEME, {{"agents": 2}}, args)
learner = learners[args.learner](mac, fake_epymarl.SCHEME, fake_epymarl.Logger(), args)
for t in range(3):
    learner.train(fake_epymarl.make_batch(args), 10 * t, t)
print("trained", type(mac.agent).__name__, sorted(learner.logger.stats)[0])
"""
REGISTRY = 'REGISTRY = {}\n\nREGISTRY["theirs"] = object'  # without a newline at its end, as in pymarl2
DEFAULTS = {
    "mac": "basic_mac",
    "env": "fake",
    "seed": 1,
    "use_cuda": False,
    "batch_size_run": 1,
    "learner_log_interval": 100,
    "t_max": 1000,
    "gamma": 0.9,
    "batch_size": 4,
    "buffer_size": 32,
    "lr": 0.005,
    "grad_norm_clip": 10,
    "agent": "rnn",
    "obs_agent_id": True,
    "obs_last_action": True,
}
FLAVOURS = {
    "epymarl": {
        "src/components/standarize_stream.py": STANDARDISE,
        "src/config/default.yaml": yaml.safe_dump(DEFAULTS | {"hidden_dim": 16, "common_reward": True}),
    },
    "pymarl2": {
        "src/modules/mixers/nmix.py": QMIX.format(name="Mixer"),
        "src/learners/nq_learner.py": "",
        "src/config/default.yaml": yaml.safe_dump(DEFAULTS | {"rnn_hidden_dim": 16}),
    },
}
COMMON = {
    "src/main.py": MAIN.format(tests=Path(__file__).parent),
    "src/learners/__init__.py": REGISTRY,
    "src/controllers/__init__.py": REGISTRY,
    "src/modules/__init__.py": "",
    "src/modules/agents/__init__.py": REGISTRY,
    "src/modules/mixers/__init__.py": "",
    "src/modules/mixers/vdn.py": VDN,
    "src/modules/mixers/qmix.py": QMIX.format(name="QMixer"),
    "src/components/__init__.py": "",
    "src/components/action_selectors.py": SELECTORS,
    "src/components/episode_buffer.py": "",
    "src/config/algs/qmix.yaml": 'name: "qmix"\n',
}
N_OBS = 7  # the last three: a unit's type
SCHEME = {"obs": {"vshape": N_OBS}, "state": {"vshape": 4}, "actions_onehot": {"vshape": (3,)}}


def write_checkout(folder: Path, flavour: str) -> Path:
    """A folder that the integration takes for that code base."""
    for name, text in (COMMON | FLAVOURS[flavour]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


class Logger:
    """Keeps what is logged."""

    def __init__(self):
        self.stats = {}

    def log_stat(self, key, value, t):
        self.stats.setdefault(key, []).append((t, value))


class Batch:
    """Episodes by name, [B, T + 1, ...] as in their buffers."""

    def __init__(self, values: dict[str, torch.Tensor]):
        self.values, self.batch_size = values, len(values["reward"])

    def __getitem__(self, key):
        return self.values[key]

    def with_values(self, **values):
        return Batch(self.values | values)


def make_batch(args: SimpleNamespace, n: int = 6, steps: int = 4, seed: int = 0) -> Batch:
    """Random episodes in which agent i is paid for action i, whatever it sees.

    Every second one ends before its time, by termination; the observation behind its last step is stored and marked
    as filled, zeros follow it.
    """
    g = torch.Generator().manual_seed(seed)
    agents, actions = args.n_agents, args.n_actions
    lengths = torch.randint(1, steps + 1, (n,), generator=g)
    lengths[::2] = steps
    time = torch.arange(steps + 1)
    filled = (time <= lengths.unsqueeze(1)).unsqueeze(-1)  # [B, T1, 1]
    seen = filled.unsqueeze(2)
    types = torch.randint(3, (n, 1, agents), generator=g).expand(-1, steps + 1, -1)
    obs = torch.cat(
        [torch.ones(n, steps + 1, agents, N_OBS - 3), torch.nn.functional.one_hot(types, 3).float()], dim=-1
    )
    chosen = torch.randint(actions, (n, steps + 1, agents, 1), generator=g)
    reward = (chosen.squeeze(-1) == torch.arange(agents)).float().sum(dim=-1, keepdim=True)
    played = time < lengths.unsqueeze(1)
    terminated = (time == lengths.unsqueeze(1) - 1) & (lengths < steps).unsqueeze(1)
    return Batch(
        {
            "obs": obs * seen,
            "state": torch.rand(n, steps + 1, args.state_shape, generator=g) * filled,
            "avail_actions": torch.ones(n, steps + 1, agents, actions, dtype=torch.int32) * seen,
            "actions": chosen * seen,
            "actions_onehot": torch.nn.functional.one_hot(chosen.squeeze(-1), actions).float() * seen,
            "reward": reward * played.unsqueeze(-1),
            "terminated": terminated.unsqueeze(-1).to(torch.uint8),
            "filled": filled.long(),
        }
    )
