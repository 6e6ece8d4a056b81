"""Which tests judge a change of which file of the package."""

from pathlib import Path

DECISIONS = ("kinds", "evidence", "roles", "real_models::test_nothing_is_wrong_in_silence")
WORK = "assign_layouts::test_ten_thousand_leaves_cost_ten_times_one_thousand"
MESH = ("owners", "shardings", "plan", "exchange", "mesh", "by_path_on_mesh")


def _mesh(*first: str) -> tuple[str, ...]:
    """The judges of the mesh, in another order."""
    return (*first, *(name for name in MESH if name not in first))


# Of test_freezing.py what holds by `hold_idle`; all else there freezes in ways of its own.
HELD = tuple(
    f"freezing::test_{name}"
    for name in (
        "refused",
        "rows_are_held_only_where_they_are_named",
        "what_is_kept_in_no_rows_is_held_while_all_are_idle",
        "rows_of_a_table_and_experts_of_a_stack",
        "what_is_kept_in_other_shapes_is_held_by_rows",
        "nothing_without_a_gradient_moves",
        "with_gradients_it_changes_no_bit",
        "training_goes_on_where_it_was",
        "on_a_mesh",
    )
)
# For every file that a pattern matches, the test files that shall notice: first those that are fast or hit. A file
# belongs to the first pattern that matches it.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "numbers": {
        "_transforms/checks/arguments": ("checks", "refusals"),
        "_orthogonalizers/coefficients": ("coefficients", "refusals"),
        "_transforms/decay_mask": ("decay_mask",),
        "_orthogonalizers/gram_newton_schulz": ("gram_newton_schulz",),
        "_orthogonalizers/restarts": ("restarts", "gram_newton_schulz"),
        "_orthogonalizers/batching": ("groups",),
        "_layouts/layout": ("layout", "refusals"),
        "_orthogonalizers/newton_schulz": ("newton_schulz", "refusals"),
        "_transforms/orthogonalize": ("refusals", "layout", "mesh"),
        "_orthogonalizers/polar_factor": ("polar",),
        "_orthogonalizers/precision": ("precision",),
        "_transforms/scale_by_shape": ("scales", "refusals"),
        "_transforms/scales": ("scales", "refusals"),
        "_orthogonalizers/start": ("start",),
        "_orthogonalizers/step": ("step",),
        "_orthogonalizers/tiling": ("symmetric_products", "resident_kernel"),
        "_orthogonalizers/kernels/resident*": ("resident_kernel", "symmetric_products"),
        "_orthogonalizers/kernels/*": ("symmetric_kernels", "symmetric_products"),
        "_orthogonalizers/*": ("array_functions", "refusals", "newton_schulz"),
    },
    "evidence": {
        "_layouts/evidence/*": DECISIONS,
        "_layouts/strength/*": DECISIONS,
        "_layouts/assigning/rules": (*DECISIONS, WORK),
    },
    "tree": {
        "_layouts/tree/layer_types": ("evidence", "labels_equinox", *DECISIONS),
        "_layouts/tree/repeated_blocks": (*DECISIONS, WORK),
        "_layouts/tree/vectors": ("decay_mask", *DECISIONS, "labels_equinox"),
        "_layouts/tree/*": DECISIONS,
        "_layouts/path*": ("paths", "kinds", "remedies"),
    },
    "assigning": {
        "_layouts/assigning/dimension_numbers": ("dimension_numbers",),
        "_layouts/assigning/handed_on": ("scales", "assign_layouts", "remedies"),
        "_layouts/assigning/last_layers": ("layouts_of",),
        "_layouts/assigning/per_head": ("roles", "per_head"),
        "_layouts/assigning/split_fused": ("split_fused",),
        "_layouts/assigning/told_by_layers": ("layouts_of",),
        "_layouts/assigning/*": ("assign_layouts", "remedies"),
        "_layouts/columns": ("summary",),
        "_layouts/saved": ("remedies",),
        "_layouts/**/*": ("kinds",),
    },
    "mesh": {
        "_mesh/checks": _mesh("plan", "shardings"),
        "_mesh/dims": _mesh("shardings"),
        "_mesh/exchange": _mesh("exchange"),
        "_mesh/given": _mesh("plan"),
        "_mesh/make_plan": _mesh("plan", "exchange"),
        "_mesh/packing": _mesh("exchange"),
        "_mesh/placement": _mesh("shardings"),
        "_mesh/plan": _mesh("plan"),
        "_mesh/typed": _mesh("shardings"),
        "_mesh/*": MESH,
    },
    "state": {
        "_state/shardings": ("state_shardings", "shardings"),
        "_state/*": ("carry_over_cases", "from_others", "carry_over"),
        "_transforms/state/*": ("golden_states", "from_others", "settings"),
    },
    "transforms": {
        "_transforms/by_path/refusals": (
            "checks",
            "by_path",
            "recipes_by_path::test_what_has_no_meaning_is_refused_where_it_is_written",
        ),
        "_transforms/by_path/*": ("checks", "by_path"),
        "_transforms/checks/keywords": ("other_keywords",),
        "_transforms/checks/updates": (
            "refusals",
            "new_user::test_the_message_says_what_to_do",
            "hostile_inputs::test_what_is_promised_is_kept",
        ),
        "_transforms/hold_idle": ("new_user::test_the_message_says_what_to_do", *HELD),
        "_transforms/hold_idle_matrices": (
            "new_user::test_the_message_says_what_to_do",
            "reported_faults::test_experts_that_get_no_token_keep_still",
        ),
        "_transforms/heads": ("recipes", "refusals", "hostile_recipes"),
        "_transforms/*": ("checks", "muon", "refusals", "golden_states"),
        "_transforms/checks/*": ("checks", "clipping", "refusals"),
    },
    "family": {
        "_transforms/family/clip_qk": ("checks", "clip_qk", "family"),
        "_transforms/family/block_periodic": ("checks", "block_periodic"),
        "_transforms/family/*": ("checks", "family", "refusals"),
        "_transforms/momenta/quantized_trace": ("checks", "quantized_trace"),
        "_transforms/momenta/offload_to_host": ("offload_to_host",),
        "_transforms/momenta/*": ("checks", "momentum", "family"),
        "_transforms/tools/*": ("clip_qk", "block_periodic", "family"),
        "recipes": ("recipes", "family", "refusals"),
    },
    "diagnostics": {
        "_diagnostics/record*": ("record", "recording"),
        "_diagnostics/idle": ("record", "settings", "diagnostics"),
        "_diagnostics/*": ("diagnostics", "recording"),
        "plots": ("recording",),
    },
    # Without keras.py, whose tests are slow and need the extra third-party.
    "front_door": {
        "__main__": ("command",),
        "_plan": ("plan",),
        "_summary": ("summary",),
        "flax": ("labels_nnx", "labels_linen", "layouts_of"),
        "_*": ("muon", "recipes", "refusals"),
    },
}


def files_of(package: Path, group: str) -> dict[str, tuple[str, ...]]:
    """The files of a group, each as ``"_layouts/layout"``, with their tests; the files are read, not imported."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, patterns in GROUPS.items():
        for pattern, tests in patterns.items():
            files = [path for path in sorted(package.glob(f"{pattern}.py")) if path.stem != "__init__"]
            if not files:
                raise ValueError(f"No file of {package} is {pattern}.py: mend _judges.py.")
            for path in files:
                found.setdefault(path.relative_to(package).with_suffix("").as_posix(), (name, tests))
    return {file: tests for file, (name, tests) in found.items() if name == group}
