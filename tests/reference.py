"""One update of a learner, slow and obvious: Python loops over episodes, agents and time steps, in float64.

Everything is computed anew from the `state_dict` of a learner before its update, the episodes and a copy of its random
number generator. Of the package only the configuration and the names of tensors are used, so that a mistake in either
implementation shows as a difference. Gradients come from `torch.autograd` through elementary operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from reference_masks import diversity_loss, drawn_masks, effective, kaleidoscope_bonus, progress_value
from torch import Tensor

from k24lab.envs.base import EnvSpec
from k24lab.lab.config import Config
from k24lab.marl.replay import EpisodeBatch
from k24lab.methods import get_method

Key = tuple[int, int, int]  # index of a value (0 with a mixer, else the agent), episode, time step
LAYERS = ("fc1", "rnn_input", "rnn_hidden", "fc2", "fc3", "fc4")
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


@dataclass
class Offsets:
    """Which step, counted from t, the target reads; a test moves one to see that the batch would show the mistake."""

    state: int = 1
    avail: int = 1
    value: int = 1


@dataclass
class Reference:
    """What an update must give. Parameters are named `agent.layers.fc1.weight`, `mixer.value.0.bias`, ..."""

    loss_td: float
    chosen: dict[Key, float]
    targets: dict[Key, float]
    div_loss: float | None
    div_coef: float
    gradients: dict[str, Tensor | None]
    greedy: dict[Key, tuple[int, int]]  # greedy next action over available actions, and over all actions
    activations: dict[str, dict[int, list[Tensor]]]  # |inputs| of living units at played steps, by layer and network
    masks: dict[str, list[Tensor]]
    policy: Tensor  # mean policy over the first ten steps
    q_values: dict[Key, Tensor] = field(default_factory=dict)  # of (agent, episode, step), online network


def tensors_of(state: Mapping[str, Tensor], learn: bool) -> dict[str, Tensor]:
    """A module's state in float64."""
    return {
        name: value.detach().double().clone().requires_grad_(learn and value.is_floating_point())
        for name, value in state.items()
    }


def network_of(config: Config, batch: EpisodeBatch, b: int, n: int) -> int:
    """Which mask or network agent n of episode b uses."""
    if not get_method(config.method).separate:
        return 0
    return int(batch.unit_type[b, n]) if config.per_type else n


def unroll(layers: dict[str, tuple[Tensor, Tensor]], inputs: list[Tensor]) -> tuple[list[Tensor], dict]:
    """Q-values of one agent in one episode, and what each layer saw at each step."""
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    hidden_dim = len(layers["fc1"][1])
    h, q_values = torch.zeros(hidden_dim, dtype=torch.float64), []

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = layers[name]
        return weight @ x + bias

    for x in inputs:
        a = torch.relu(linear("fc1", x))
        from_input, from_hidden = linear("rnn_input", a), linear("rnn_hidden", h)
        (ri, zi, ni), (rh, zh, nh) = from_input.split(hidden_dim), from_hidden.split(hidden_dim)
        r, z = torch.sigmoid(ri + rh), torch.sigmoid(zi + zh)
        h = (1 - z) * torch.tanh(ni + r * nh) + z * h
        c = torch.relu(linear("fc2", h))
        d = torch.relu(linear("fc3", c))
        q_values.append(linear("fc4", d))
        # The running mean of the hidden side is taken over the states after a step, as that of fc2.
        for name, value in zip(LAYERS, (x, a, h, h, c, d), strict=True):
            seen[name].append(value.detach().abs())
    return q_values, seen


def mix(config: Config, mixer: dict[str, Tensor], q: list[Tensor], state: Tensor) -> list[Tensor]:
    """Team values of one step: one number, or one of each agent without a mixer."""
    if config.mixer == "none":
        return q
    if config.mixer == "vdn":
        return [sum(q[1:], q[0])]

    def linear(name: str, x: Tensor) -> Tensor:
        return mixer[f"{name}.weight"] @ x + mixer[f"{name}.bias"]

    embed = config.mixing_embed_dim
    w1 = linear("hyper_w1.2", torch.relu(linear("hyper_w1.0", state))).abs()
    w2 = linear("hyper_w2.2", torch.relu(linear("hyper_w2.0", state))).abs()
    b1 = linear("hyper_b1", state)
    total = linear("value.2", torch.relu(linear("value.0", state)))[0]
    for e in range(embed):
        x = sum((q[n] * w1[n * embed + e] for n in range(len(q))), b1[e])
        elu = x if x > 0 else torch.exp(x) - 1
        total = total + w2[e] * elu
    return [total]


def lambda_return(rewards: list[float], values: list[float], terminated: list[bool], t: int, gamma: float, lam: float):
    """The lambda-weighted mean of the n-step returns from t on; `values[k]` is that of the state after step k."""
    total, weight, discounted, discount = 0.0, 1.0, 0.0, 1.0
    last = len(rewards) - 1
    for k in range(t, last + 1):
        discounted += discount * rewards[k]
        discount *= gamma
        n_step = discounted + (0.0 if terminated[k] else discount * values[k])
        total += (weight if k == last else weight * (1 - lam)) * n_step
        weight *= lam
    return total


def targets_of(config: Config, rewards: list[float], values: list[float], terminated: list[bool]) -> list[float]:
    """Targets of all steps of one episode."""
    steps = range(len(rewards))
    if config.learner == "nq":
        return [lambda_return(rewards, values, terminated, t, config.gamma, config.td_lambda) for t in steps]
    return [rewards[t] + (0.0 if terminated[t] else config.gamma * values[t]) for t in steps]


def one_loss(config: Config, error: Tensor) -> Tensor:
    """Squared error, or Huber's: quadratic up to 1, linear beyond."""
    if config.td_loss == "mse":
        return error * error
    size = error.abs()
    return 0.5 * error * error if size <= 1 else size - 0.5


class Update:
    """Computes one update; `result` holds it."""

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        state: dict,
        batch: EpisodeBatch,
        t_env: int,
        offsets: Offsets | None = None,
    ):
        self.config, self.spec, self.batch, self.t_env = config, spec, batch, t_env
        self.offsets = offsets or Offsets()
        self.agent, self.mixer = (tensors_of(state[name], learn=True) for name in ("agent", "mixer"))
        self.target_agent, self.target_mixer = (
            tensors_of(state[name], learn=False) for name in ("target_agent", "target_mixer")
        )
        dtype = state["agent"]["layers.fc1.bias"].dtype
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self.draw = drawn_masks(config, self.agent, t_env, generator, dtype)
        drawn = generator if config.target_masks == "drawn" else None  # after the online network's masks
        best = drawn_masks(config, self.target_agent, t_env, drawn, dtype)
        self.lengths = [int(filled.sum()) for filled in batch.filled]
        self.online, self.seen = self._play(self.agent, self.draw.masks)
        with torch.no_grad():
            self.target, _ = self._play(self.target_agent, best.masks)
        self.result = self._result(state.get("diversity"))

    def _play(self, tensors: dict[str, Tensor], masks: dict[str, list[Tensor]]) -> tuple[dict[Key, Tensor], dict]:
        """Q-values of every agent at every step of every episode, the one after the last included."""
        q, seen = {}, {}
        n_networks = 1 + max(network_of(self.config, self.batch, b, n) for b, n in self._units())
        layers = [{name: effective(tensors, name, k, masks) for name in LAYERS} for k in range(n_networks)]
        for b, n in self._units():
            inputs = []
            for t in range(self.lengths[b] + 1):
                x = self.batch.obs[b, t, n].double()
                if self.config.agent_id:
                    x = torch.cat([x, torch.tensor([float(k == n) for k in range(self.spec.n_agents)]).double()])
                inputs.append(x)
            values, seen[n, b] = unroll(layers[network_of(self.config, self.batch, b, n)], inputs)
            q |= {(n, b, t): value for t, value in enumerate(values)}
        return q, seen

    def _units(self) -> list[tuple[int, int]]:
        return [(b, n) for b in range(len(self.lengths)) for n in range(self.spec.n_agents)]

    def _greedy(self, n: int, b: int, t: int) -> tuple[int, int]:
        """The action that the online network prefers among those available at that step, and among all."""
        values, offset = self.online[n, b, t + self.offsets.value].tolist(), t + self.offsets.avail
        available = [a for a in range(len(values)) if self.batch.avail_actions[b, offset, n, a]]
        return max(available, key=values.__getitem__), max(range(len(values)), key=values.__getitem__)

    def _values(self, b: int) -> tuple[list[list[Tensor]], list[list[float]], dict[Key, tuple[int, int]]]:
        """Team values of one episode: of the chosen actions, and of the states after each step; greedy actions."""
        batch, agents, greedy = self.batch, range(self.spec.n_agents), {}
        chosen, after = [], []
        for t in range(self.lengths[b]):
            taken = [self.online[n, b, t][batch.actions[b, t, n]] for n in agents]
            chosen.append(mix(self.config, self.mixer, taken, batch.state[b, t].double()))
            greedy |= {(n, b, t): self._greedy(n, b, t) for n in agents}
            with torch.no_grad():
                best = [self.target[n, b, t + self.offsets.value][greedy[n, b, t][0]] for n in agents]
                state = batch.state[b, t + self.offsets.state].double()
                after.append([v.item() for v in mix(self.config, self.target_mixer, best, state)])
        return chosen, after, greedy

    def _result(self, histories: dict[str, list[float]]) -> Reference:
        chosen, targets, greedy, losses = {}, {}, {}, []
        for b, length in enumerate(self.lengths):
            taken, after, best = self._values(b)
            greedy |= best
            rewards, ends = (x[b, :length].tolist() for x in (self.batch.reward, self.batch.terminated))
            for k in range(len(taken[0])):
                goals = targets_of(self.config, rewards, [values[k] for values in after], ends)
                for t in range(length):
                    chosen[k, b, t], targets[k, b, t] = taken[t][k].item(), goals[t]
                    losses.append(one_loss(self.config, taken[t][k] - goals[t]))
        loss_td = sum(losses[1:], losses[0]) / len(losses)
        div_loss, div_coef, total = self._with_diversity(loss_td, histories)
        names = {f"agent.{n}": v for n, v in self.agent.items()} | {f"mixer.{n}": v for n, v in self.mixer.items()}
        leaves = {name: value for name, value in names.items() if value.requires_grad}
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return Reference(
            loss_td=loss_td.item(),
            chosen=chosen,
            targets=targets,
            div_loss=div_loss,
            div_coef=div_coef,
            gradients=dict(zip(leaves, gradients, strict=True)),
            greedy=greedy,
            activations=self._activations(),
            masks={name: [m.detach() for m in masks] for name, masks in self.draw.masks.items()},
            policy=self._policy(),
            q_values={key: value.detach() for key, value in self.online.items()},
        )

    def _with_diversity(self, loss_td: Tensor, histories: dict) -> tuple[float | None, float, Tensor]:
        """Diversity loss (None: the method has none), its coefficient, and the whole loss."""
        config = self.config
        thresholds = any(name.endswith(".threshold") for name in self.agent)
        if thresholds:
            div_loss = kaleidoscope_bonus(self.agent)[0].item()
        elif self.draw.probs is not None:
            div_loss = diversity_loss(self.draw.probs).item()
        else:
            return None, 0.0, loss_td + self.draw.decay
        coef = coefficient(config, histories, loss_td.item(), div_loss)
        if thresholds:
            return div_loss, coef, loss_td + (kaleidoscope_bonus(self.agent, coef)[1] if coef else 0.0)
        assert self.draw.probs is not None
        return div_loss, coef, loss_td + coef * diversity_loss(self.draw.probs)

    def _activations(self) -> dict[str, dict[int, list[Tensor]]]:
        """|inputs| of each layer by network: played steps of living units, the last observation is none of them."""
        found: dict[str, dict[int, list[Tensor]]] = {name: {} for name in LAYERS}
        for b, n in self._units():
            k = network_of(self.config, self.batch, b, n)
            for name in LAYERS:
                played = [t for t in range(self.lengths[b]) if self.batch.alive[b, t, n]]
                found[name].setdefault(k, []).extend(self.seen[n, b][name][t] for t in played)
        return found

    def _policy(self) -> Tensor:
        """Mean of softmax(Q) over the available actions in the first ten steps of living units."""
        rows = []
        for b, n in self._units():
            for t in range(min(10, self.lengths[b])):
                if self.batch.alive[b, t, n]:
                    available = self.batch.avail_actions[b, t, n]
                    weights = [q.exp() if ok else 0 * q for q, ok in zip(self.online[n, b, t], available, strict=True)]
                    rows.append(torch.stack(weights) / sum(weights))
        return (sum(rows[1:], rows[0]) / len(rows)).detach()


def coefficient(config: Config, histories: dict[str, list[float]], td: float, div: float) -> float:
    """The adaptive weight of the diversity loss, from the histories before this update and its two losses."""
    base, cap = config.diversity_coef, config.diversity_coef_max
    if base == 0:
        return 0.0
    tds = [*histories["td_history"], td][-config.diversity_history :]
    divs = [*histories["div_history"], div][-config.diversity_history :]
    ratio = base * (sum(tds) / len(tds)) / (sum(divs) / len(divs))
    return abs(ratio) if cap is None else min(abs(ratio), cap)


def clipped(gradients: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    """Gradients scaled down together so that their common norm is at most `limit`."""
    norm = sum(float((g * g).sum()) for g in gradients.values()) ** 0.5
    return {name: g * min(1.0, limit / (norm + 1e-6)) for name, g in gradients.items()}


def adam(parameter: Tensor, gradient: Tensor, moments: dict | None, lr: float) -> Tensor:
    """The parameter after one step of Adam (Kingma and Ba, 2015)."""
    first = moments["exp_avg"].double() if moments else torch.zeros_like(gradient)
    second = moments["exp_avg_sq"].double() if moments else torch.zeros_like(gradient)
    step = 1 + (int(moments["step"]) if moments else 0)
    first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * gradient
    second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * gradient**2
    first, second = first / (1 - ADAM_BETAS[0] ** step), second / (1 - ADAM_BETAS[1] ** step)
    return parameter - lr * first / (second.sqrt() + ADAM_EPS)


def learning_rate(config: Config, t_env: int) -> float:
    """Linear from `lr` at the start to `lr_final` at `t_max`, or constant without it."""
    return progress_value(config.lr, config.lr if config.lr_final is None else config.lr_final, t_env / config.t_max)
