"""Mutants that no test can notice, since what the package promises stays the same: file, line, mistake and reason."""

SEQUENCES = "return Episodes(rows.merge(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]), done)"
PINNED = "PINNED_ALPHA = -60.0  # its sigmoid, 1e-26, lies below every score of an entry that is kept"

SMALLEST = "SMALLEST_WEIGHT = 1e-30  # smaller ones score as this does, without a gradient"
POWER = "scores = scores * (size if p == 1 else size.clamp_min(SMALLEST_WEIGHT).pow(p))"
DISTANCE = "distance = np.sqrt((away**2).sum(axis=1, keepdims=True)) + 1e-6  # on top of a predator: no division by 0"
LEGAL = "self._first_action, self._last_action = torch.zeros_like(n_actions), n_actions - 1"
OVERLAP = "overlap = torch.logaddexp(self._zero, self._touch.sub(self._distance).div_(SOFTNESS))  # of SOFTNESS"
CHECK = "if not torch.equal(actions.clamp(self._first_action, self._last_action), actions):"
LIMIT = "self._any_contact, self._any_limit = bool(solid.any()), any(a.max_speed < inf for a in agents)"
FEW = "MOST_PERMUTATIONS = 5  # agents: for more, scipy finds the best assignment of one environment after the other"
NEAR = (
    "distance = torch.linalg.vector_norm(away, dim=-1, keepdim=True) + 1e-6  # on top of a predator: no division by 0"
)
SPEAKER = 'Body("speaker_0", size=0.075, collides=False, movable=False, n_words=3),'
BEGUN = "NOT_BEGUN = -1  # env steps before the first reset"
CHECKED = "It only decides whether check_actions is asked, which refuses no action that is available."
ONE_GROUP = "Concatenating one group, which needs no padding, gives the group."
NO_LIMIT = "A shortcut: a speed limit of infinity changes no velocity, and all agents of a task have one or none has."
SPEED = "Both ways give the same assignment; the number of agents decides which is faster."
SOFT = "Any number far below a distance that matters keeps the division from failing."

EQUIVALENTS: dict[tuple[str, str, str], str] = {
    (
        "k24lab/core/convert.py",
        "rnn = nn.GRU(*sizes, bias=gates[0][0].has_bias, batch_first=module.batch_first)",
        "rnn = nn.GRU(*sizes, bias=gates[1][0].has_bias, batch_first=module.batch_first)",
    ): "All layers of a masked GRU have a bias, or none has one.",
    (
        "k24lab/core/modules.py",
        "if len(alike) == 1:",
        "if len(alike) == 0:",
    ): "A shortcut: putting the parts of a single draw together gives the draw.",
    (
        "k24lab/core/diversity.py",
        "td, div = (sum(h) / len(h) for h in (self.td_history, self.div_history))",
        "td, div = (sum(h) * len(h) for h in (self.td_history, self.div_history))",
    ): "Both histories have the same length, which their ratio cancels.",
    (
        "k24lab/analysis/stats.py",
        "GRID_POINTS = 101",
        "GRID_POINTS = 100",
    ): "Curves are drawn at about a hundred points; how many exactly is no promise.",
    (
        "k24lab/ops/mask_draws.py",
        "ctx.set_materialize_grads(False)",
        "ctx.set_materialize_grads(True)",
    ): "A gradient of zeros in place of none gives the same numbers, later.",
    (
        "k24lab/core/layers.py",
        SMALLEST,
        SMALLEST.replace("1e-30", "2e-30"),
    ): "Any number below all weights that occur keeps the root of zero from having an infinite derivative.",
    (
        "k24lab/core/layers.py",
        POWER,
        POWER.replace("p == 1", "p == 2"),
    ): "A shortcut: the first power is the number itself.",
    (
        "k24lab/core/baselines.py",
        "grouped = group_scores(self.weight.abs().unsqueeze(0), padding=-1.0)",
        "grouped = group_scores(self.weight.abs().unsqueeze(0), padding=-2.0)",
    ): "Any negative number lies below every |W|.",
    (
        "k24lab/core/masks.py",
        PINNED,
        PINNED.replace("-60.0", "-120.0"),
    ): "Any coefficient whose sigmoid lies below all scores pins a mask; that of -120 is 0.",
    (
        "k24lab/marl/batching.py",
        SEQUENCES,
        SEQUENCES.replace("> 1", ">= 1"),
    ): "Concatenating a single part gives the part.",
    (
        "k24lab/marl/batching.py",
        SEQUENCES,
        SEQUENCES.replace("> 1", "> 0"),
    ): "Concatenating a single part gives the part.",
    (
        "k24lab/envs/mpe2.py",
        DISTANCE,
        DISTANCE.replace("1e-6", "2e-06"),
    ): "Any number far below a distance that matters keeps the division from failing.",
    (
        "k24lab/envs/mpe2.py",
        "self._rng = np.random.default_rng(0)",
        "self._rng = np.random.default_rng(1)",
    ): "Until a reset seeds it anew, it is only asked which agents a script plays, whatever they do.",
    (
        "k24lab/envs/mpe.py",
        LEGAL,
        LEGAL.replace("zeros_like", "ones_like"),
    ): CHECKED,
    (
        "k24lab/envs/mpe.py",
        OVERLAP,
        "overlap = torch.logaddexp(self._touch.sub(self._distance).div_(SOFTNESS), self._zero)  # of SOFTNESS",
    ): "The function is symmetric.",
    (
        "k24lab/envs/mpe.py",
        CHECK,
        CHECK.replace(
            "actions.clamp(self._first_action, self._last_action), actions",
            "actions, actions.clamp(self._first_action, self._last_action)",
        ),
    ): CHECKED,
    (
        "k24lab/envs/mpe.py",
        CHECK,
        CHECK.replace("self._first_action, self._last_action", "self._last_action, self._first_action"),
    ): CHECKED,
    ("k24lab/envs/mpe.py", LIMIT, LIMIT.replace(" any(a.", " all(a.")): NO_LIMIT,
    ("k24lab/envs/mpe.py", LIMIT, LIMIT.replace("<", "<=")): NO_LIMIT,
    ("k24lab/envs/mpe.py", "if len(groups) > 1:", "if len(groups) >= 1:"): ONE_GROUP,
    ("k24lab/envs/mpe.py", "if len(groups) > 1:", "if len(groups) > 0:"): ONE_GROUP,
    ("k24lab/envs/mpe.py", BEGUN, BEGUN.replace("-1", "-2")): "Any negative number is no number of env steps.",
    ("k24lab/envs/mpe_places.py", FEW, FEW.replace("= 5", "= 4")): SPEED,
    ("k24lab/envs/mpe_places.py", FEW, FEW.replace("= 5", "= 6")): SPEED,
    ("k24lab/envs/mpe_places.py", "if n > MOST_PERMUTATIONS:", "if n >= MOST_PERMUTATIONS:"): SPEED,
    ("k24lab/envs/mpe_hunt.py", NEAR, NEAR.replace("1e-6", "2e-06")): SOFT,
    ("k24lab/envs/mpe_hunt.py", NEAR, NEAR.replace("+ 1e-6", "- 1e-6")): SOFT,
    (
        "k24lab/envs/mpe_words.py",
        SPEAKER,
        SPEAKER.replace("collides=False", "collides=True"),
    ): "Nothing else in this task collides.",
}
