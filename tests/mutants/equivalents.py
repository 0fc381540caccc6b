"""Mutants that no test can notice, since what the package promises stays the same: file, line, mistake and reason."""

SEQUENCES = "return Episodes(rows.merge(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]), done)"
PINNED = "PINNED_ALPHA = -60.0  # its sigmoid, 1e-26, lies below every score of an entry that is kept"
SPARSITY = 'metrics[f"sparsity_layer_{name}"] = 1.0 - mask.detach().mean().item()'
VALUES = 'named = {"td_error_abs": td_error.detach().abs(), "q_taken_mean": chosen_q, "target_mean": targets}'

DISTANCE = "distance = np.sqrt((away**2).sum(axis=1, keepdims=True)) + 1e-6  # on top of a predator: no division by 0"

EQUIVALENTS: dict[tuple[str, str, str], str] = {
    (
        "k24lab/core/masks.py",
        PINNED,
        PINNED.replace("-60.0", "-120.0"),
    ): "Any coefficient whose sigmoid lies below all scores pins a mask; that of -120 is 0.",
    (
        "k24lab/marl/sequences.py",
        SEQUENCES,
        SEQUENCES.replace("> 1", ">= 1"),
    ): "Concatenating a single part gives the part.",
    (
        "k24lab/marl/sequences.py",
        SEQUENCES,
        SEQUENCES.replace("> 1", "> 0"),
    ): "Concatenating a single part gives the part.",
    (
        "k24lab/marl/diagnostics.py",
        SPARSITY,
        SPARSITY.replace(".detach()", ""),
    ): "The number is taken out with item() at once; nothing is differentiated.",
    (
        "k24lab/marl/diagnostics.py",
        VALUES,
        VALUES.replace(".detach()", ""),
    ): "The number is taken out with item() at once; nothing is differentiated.",
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
}
