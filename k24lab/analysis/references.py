"""What is known of a task without learning: lines that figures draw beside the curves."""

RANDOM = "random actions"  # mean return of uniformly random available actions
ALIKE = "bound if all act alike"  # no team whose agents share one policy without ids returns more
SCRIPTED = "scripted team"  # a controller written by hand that knows who is who: simple, not optimal

# Task -> its lines. All but the bound are measured by study/references.py, which writes figures/references/; a test
# compares the two. The bound is computed in tests/test_envs_rolenav.py.
KNOWN: dict[str, dict[str, float]] = {
    "rolenav": {RANDOM: -0.06, ALIKE: 1.45, SCRIPTED: 3.00},
    "rolenav:n_agents=8": {RANDOM: -0.15, SCRIPTED: 8.03},
    "rolenav:n_agents=16": {RANDOM: -0.38, SCRIPTED: 16.03},
    "vmas/navigation": {RANDOM: -0.16, SCRIPTED: 3.14},
    "vmas/dispersion": {RANDOM: 0.49, SCRIPTED: 4.00},
    "vmas/het_mass": {RANDOM: -10.01, SCRIPTED: 9.02},
    "vmas/give_way": {RANDOM: 0.00},
    "vmas/asym_joint": {RANDOM: -11.52},
    "lbforaging/Foraging-6x6-2p-2f-coop-v3": {RANDOM: 0.01},
    "mpe/simple_spread": {RANDOM: -78.87, SCRIPTED: -24.99},
    "mpe/simple_tag:prey=random": {RANDOM: 13.26, SCRIPTED: 198.66},
}


def known_returns(task: str) -> dict[str, float]:
    """Name and return of each line that is known for a task in its canonical spelling; none for any other task."""
    return dict(KNOWN.get(task, {}))
