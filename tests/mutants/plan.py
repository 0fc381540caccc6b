"""Which files are mutated, which tests must notice it, and the mutants that are always among those run."""

from typing import NamedTuple


class Part(NamedTuple):
    """A file, the tests that must notice a mistake in it (in this order), and the functions if not all count."""

    file: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] | None = None


def _part(file: str, tests: str, functions: tuple[str, ...] | None = None) -> Part:
    return Part(f"k24lab/{file}", tuple(f"tests/test_{name}.py" for name in tests.split()), functions)


PLAN = (
    _part("core/patterns.py", "patterns masks gradients"),
    _part("core/pattern_table.py", "patterns similarity"),
    _part("core/masks.py", "masks gradients frozen kernels reference_update"),
    _part("ops/mask_draws.py", "gradients kernels reference_update"),
    _part("core/layers.py", "layers running_mean modules masks kernels reference_state reference_update"),
    _part("core/modules.py", "modules"),
    _part("core/recurrent.py", "convert"),
    _part("core/convert.py", "convert"),
    _part("core/baselines.py", "baselines gradients reference_update"),
    _part("core/gains.py", "gains reference_update"),
    _part("core/hypernetwork.py", "gains reference_update"),
    _part("core/diversity.py", "diversity gradients learner learner_metrics reference_update"),
    _part("core/reset.py", "reset reference_state"),
    _part(
        "core/schemes.py",
        "learner learner_metrics reset frozen diversity baselines literal reference_state reference_update",
    ),
    _part("ops/linear.py", "gradients kernels reference_update"),
    _part("ops/network.py", "gradients kernels reference_update"),
    _part("marl/agent.py", "agents gradients kernels reference_update learner learner_metrics"),
    _part("ops/gru.py", "gru gradients kernels reference_update"),
    _part("marl/seeding.py", "seeding"),
    _part("marl/mixers.py", "mixers reference_update"),
    _part("marl/targets.py", "targets learner learner_metrics reference_update"),
    _part("marl/policy.py", "policy literal"),
    _part("marl/replay.py", "replay learner learner_metrics"),
    _part("marl/rollout.py", "rollout reference_state literal"),
    _part("marl/batching.py", "batching types learner learner_metrics reference_update reference_state"),
    _part("marl/diagnostics.py", "learner learner_metrics baselines literal"),
    _part(
        "marl/learner.py",
        "targets gains learner learner_metrics reset frozen diversity types reference_state reference_update",
    ),
    _part("core/schedules.py", "schedules reference_update"),
    _part("analysis/stats.py", "stats"),
    _part("inference/packing.py", "packing"),
    _part("envs/rolenav.py", "envs_rolenav"),
    _part("envs/base.py", "envs_base types"),
    _part("envs/mpe.py", "mpe mpe_episodes"),
    _part("envs/mpe_places.py", "mpe mpe_episodes"),
    _part("envs/mpe_hunt.py", "mpe mpe_episodes"),
    _part("envs/mpe_words.py", "mpe mpe_episodes"),
    _part("envs/mpe_treasure.py", "mpe mpe_episodes"),
    _part("envs/mpe2.py", "scripted_prey envs_mpe2 named_environments"),
    _part(
        "envs/pettingzoo.py",
        "envs_pettingzoo envs_mpe2 named_environments aec pettingzoo_answers odd_environments task_doctor animation",
    ),
    _part(
        "envs/pettingzoo_spaces.py",
        "pettingzoo_spaces odd_environments task_doctor envs_pettingzoo envs_mpe2 named_environments",
    ),
    _part("envs/vector_env.py", "vector_env"),
    _part(
        "lab/train.py",
        "reference_state train resume run_folders pipeline",
        ("_iteration", "_epsilon", "_due", "_collect_ahead"),
    ),
)

LEARNER, NEXT_Q = "k24lab/marl/learner.py", "next_q = double_q_values(online_q[:, 1:], target_q[:, 1:], avail[:, 1:])"
# Mistakes that a review made by hand and no test noticed: file, line, line with the mistake.
NAMED = (
    (
        LEARNER,
        "next_value = self.target_mixer(next_q, state[1:])",
        "next_value = self.target_mixer(next_q, state[:-1])",
    ),
    (LEARNER, NEXT_Q, NEXT_Q.replace("avail[:, 1:]", "avail[:, :-1]")),
    (LEARNER, NEXT_Q, "next_q = double_q_values(online_q[:, :-1], target_q[:, :-1], avail[:, 1:])"),
    (
        LEARNER,
        "return mean_policy(self.online.q_values.detach()[:, steps], avail, played)",
        "return mean_policy(-self.online.q_values.detach()[:, steps], avail, played)",
    ),
    (
        "k24lab/core/diversity.py",
        "return (probs.sum(dim=1, keepdim=True) - probs).mul_(2 * grads[0])",
        "return (probs.sum(dim=1, keepdim=True) - probs).mul_(grads[0])",
    ),
    (
        "k24lab/core/baselines.py",
        "LAYER_WEIGHTS = (1.0, 2.0, 4.0, 8.0)  # of fc1 to fc4 in Kaleidoscope's bonus",
        "LAYER_WEIGHTS = (8.0, 4.0, 2.0, 1.0)  # of fc1 to fc4 in Kaleidoscope's bonus",
    ),
    (
        "k24lab/lab/train.py",
        "return schedules.linear(c.epsilon_start, c.epsilon_finish, self.t_env / max(c.epsilon_anneal_steps, 1))",
        "return schedules.linear(c.epsilon_start, c.epsilon_finish, self.t_env / c.t_max)",
    ),
    ("k24lab/inference/packing.py", "if not agrees.any(dim=-1).all():", "if not agrees.any():"),
)
