"""The wrapper that measures an optimizer's steps from inside and keeps what it measured in its state."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from muon_optax._diagnostics.leaves import by_path, floating_leaves, planned
from muon_optax._diagnostics.measure import AFTER, BEFORE, MEASUREMENTS, Leaf, after_step, before_step
from muon_optax._diagnostics.sizes import orthogonal_rms, root_mean_square
from muon_optax._layouts.assigning.resolve import Layouts, resolve
from muon_optax._layouts.paths import named_leaves
from muon_optax._mesh.typed import relocate_like
from muon_optax._state.kept_arrays import kept_arrays
from muon_optax._transforms.checks.arguments import check_rate, check_transform, check_whole_number
from muon_optax._transforms.checks.updates import refuse_exchanged, refuse_other_tree
from muon_optax._transforms.scales import Scale, check_scale


class RecordState(NamedTuple):
    """The state of :func:`record`: the optimizer's own, and the last measurements, which :func:`recorded` reads."""

    inner_state: Any
    step: jax.Array  # () int32
    steps: jax.Array  # (keep,) int32, of which the rows of `values` are; -1 for a row not yet written
    values: jax.Array  # (keep, leaves, measurements) float32, leaves in the order of their sorted paths
    initial: dict[str, jax.Array]  # () float32, each parameter's root mean square when the recorder began
    # Where the power iterations of all matrices have come to: one array, which XLA leaves whole under Auto axes.
    vectors: jax.Array  # (outputs,) float32


def record(
    optimizer: optax.GradientTransformation,
    every: int | None = 100,
    *,
    learning_rate: optax.ScalarOrSchedule | None = None,
    scale: Scale = "moonlight",
    layouts: Layouts = None,
    keep: int = 32,
) -> optax.GradientTransformationExtraArgs:
    """Makes ``optimizer`` measure itself every ``every`` steps. :func:`recorded` reads the measurements from its state.

    Gradients and updates are hidden inside ``flax.nnx.Optimizer`` and ``TrainState``, and inside ``scan``. A recorder
    sees them there. It works on a mesh, under donation and in wrappers such as ``optax.MultiSteps``; the updates are
    those of ``optimizer``. Of every floating leaf it measures:

    =================== ==================================================================================
    name                meaning
    =================== ==================================================================================
    gradient_rms        root mean square of the gradient as the recorder gets it
    idle                share of zero gradients: of a matrix's outputs, a table's rows, a vector's numbers
    momentum_cosine     gradient against the momentum (AdamW: first moment) before the step, -1 to 1
    weight_rms          root mean square of the parameter before the step
    growth              the same over that at ``init``
    spectral_norm       largest singular value of the leaf's matrices, by power iteration: from below
    stable_rank         ``|W|_F^2 / |W|_2^2`` over the shorter side, mean of the matrices: at most 1
    update_rms          root mean square of the update
    relative_update     the same over ``weight_rms``
    update_size         the same over :func:`predicted_update_rms`
    orthogonality_error of the update, as :func:`orthogonality_error`
    =================== ==================================================================================

    What a leaf does not have is NaN. The last two are for what is orthogonalized: a leaf of which the optimizer keeps
    second moments, as AdamW does, has none. At other steps nothing is computed but a counter.

    Args:
        optimizer: Any transform of the whole tree, such as :func:`muon_optax.muon`.
        every: Steps between measurements, at least 1; the first step is measured. ``None`` returns ``optimizer`` as it
            is: the program is the same as without this line.
        learning_rate: As given to the optimizer: a number or a schedule, with which ``update_size`` is absolute.
            ``None`` makes it relative to the median of the matrices that get a gradient.
        scale: As given to :func:`muon_optax.muon`.
        layouts: As given to :func:`muon_optax.muon`.
        keep: How many measurements the state holds, at least 1: 44 bytes a leaf each.

    Returns:
        A transform with a :class:`RecordState` around the state of ``optimizer``. ``update`` needs ``params``.

    Raises:
        ValueError: At construction, for numbers out of range; at ``init``, for two leaves of one path, and as
            :func:`muon_optax.assign_layouts`; at ``update``, without ``params``.
        TypeError: At construction, for an ``optimizer`` that is none.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> optimizer = mo.diagnostics.record(mo.muon(0.02), every=10, learning_rate=0.02)
        >>> params = {"kernel": jnp.eye(4), "bias": jnp.ones(4)}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> mo.diagnostics.recorded(state).last("weight_rms")
        {'bias': 1.0, 'kernel': 0.5}
    """
    check_transform("optimizer", optimizer)
    check_scale(scale)
    check_whole_number("keep", keep, 1)
    if learning_rate is not None:
        check_rate("learning_rate", learning_rate)
    extended = optax.with_extra_args_support(optimizer)
    if every is None:
        return extended
    check_whole_number("every", every, 1)

    def init(params: optax.Params) -> RecordState:
        leaves, arrays = _leaves(params, layouts, scale)
        return _empty(leaves, arrays, keep)._replace(inner_state=extended.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, RecordState]:
        if params is None:
            raise ValueError("record measures the parameters: call optimizer.update(gradients, state, params).")
        refuse_exchanged(updates, state, params)
        leaves, gradients = _leaves(updates, layouts, scale)
        _refuse_other_leaves(gradients, state.initial)
        leaves, weights = _predicted(leaves, state.inner_state), _arrays(params)
        _refuse_other_params(gradients, weights)
        due = True if every == 1 else state.step % every == 0
        with jax.numpy_dtype_promotion("standard"):
            seen = _before(due, leaves, state, gradients, weights)
            # The step must wait: else XLA would copy momenta and parameters, which it overwrites.
            updates, seen = jax.lax.optimization_barrier((updates, seen))
        results, inner_state = extended.update(updates, state.inner_state, params, **extra_args)
        with jax.numpy_dtype_promotion("standard"):
            rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
            after = partial(_after, leaves, rate, seen.values, _arrays(results), state.step // every % keep)
            steps, values = _if_due(due, after, (state.steps, state.values), state.step)
        step = jnp.asarray(optax.safe_increment(state.step))
        return results, RecordState(inner_state, step, steps, values, state.initial, seen.vectors)

    return optax.GradientTransformationExtraArgs(init, update)


class _Seen(NamedTuple):
    values: jax.Array  # (leaves, those of BEFORE)
    vectors: jax.Array


def _arrays(tree: Any) -> dict[str, jax.Array]:
    return by_path((path, jnp.asarray(value)) for path, value in floating_leaves(tree))


def _leaves(tree: Any, layouts: Layouts, scale: Scale) -> tuple[list[Leaf], dict[str, jax.Array]]:
    """The static properties of the floating leaves, in the order of their sorted paths, and their arrays."""
    resolved, _ = resolve(tree, named_leaves(tree), layouts)
    arrays = _arrays(tree)
    leaves = []
    for path in sorted(arrays):
        layout, shape = resolved[path], arrays[path].shape
        leaves.append(Leaf(path, layout, shape, math.nan if layout is None else orthogonal_rms(scale, layout, shape)))
    return leaves, arrays


def _predicted(leaves: list[Leaf], state: Any) -> list[Leaf]:
    """The leaves without a prediction for those that ``state`` keeps second moments of: no step orthogonalizes them."""
    by_adam = {kept.path for kept in kept_arrays(state) if kept.what == "second moment"}
    return [leaf._replace(predicted=math.nan) if leaf.path in by_adam else leaf for leaf in leaves]


def _empty(leaves: list[Leaf], arrays: Mapping[str, jax.Array], keep: int) -> RecordState:
    initial = {leaf.path: planned(root_mean_square, arrays[leaf.path]).astype(jnp.float32) for leaf in leaves}
    outputs = sum(leaf.outputs for leaf in leaves)
    # The same in each run; a random vector is orthogonal to no matrix's first direction.
    vectors = jnp.asarray(np.random.default_rng(0).standard_normal(outputs), jnp.float32)
    values = jnp.full((keep, len(leaves), len(MEASUREMENTS)), jnp.nan, jnp.float32)
    step, steps = jnp.zeros([], jnp.int32), jnp.full(keep, -1, jnp.int32)
    state = RecordState((), step, steps, values, initial, vectors)
    # Where types say on which mesh arrays lie, what is measured lies there too, and the state must from the start.
    anchor = next(iter(initial.values()), state.step)
    return jax.tree.map(lambda array: relocate_like(array, anchor), state)


def _if_due(due: jax.Array | bool, measured: Callable[..., Any], otherwise: Any, *operands: Any) -> Any:
    if not isinstance(due, Tracer):
        # Outside jit, where a cond would be compiled anew at each step, since its branches are new functions.
        return measured(otherwise, *operands) if due else otherwise
    return jax.lax.cond(due, measured, lambda unchanged, *_: unchanged, otherwise, *operands)


def _before(
    due: jax.Array | bool,
    leaves: list[Leaf],
    state: RecordState,
    gradients: Mapping[str, jax.Array],
    params: Mapping[str, jax.Array],
) -> _Seen:
    momenta = _momenta(state.inner_state, gradients)

    def measured(unchanged: _Seen) -> _Seen:
        first, edges = jnp.all(state.steps < 0), np.cumsum([leaf.outputs for leaf in leaves])[:-1].tolist()
        rows, vectors = [], []
        for leaf, before in zip(leaves, jnp.split(unchanged.vectors, edges), strict=True):
            path = leaf.path
            arrays = [gradients[path], params[path], *([momenta[path]] if path in momenta else [])]
            row, vector = before_step(leaf, first, state.initial[path], before, *arrays)
            rows.append(row)
            vectors.append(vector)
        return _Seen(jnp.stack(rows), jnp.concatenate(vectors))

    nothing = jnp.zeros((len(leaves), len(BEFORE)), jnp.float32)
    unmeasured = _Seen(relocate_like(nothing, state.step), state.vectors)
    return _if_due(due, measured, unmeasured) if leaves else unmeasured


def _momenta(state: Any, gradients: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The momentum, or AdamW's first moment, of each leaf of which the state keeps one as an array of its shape."""
    found: dict[str, jax.Array] = {}
    for kept in kept_arrays(state):
        wanted = kept.what in ("momentum", "first moment") and kept.path in gradients
        if wanted and kept.shape == gradients[kept.path].shape and kept.way != "codes":
            found.setdefault(kept.path, jnp.asarray(kept.values[0]))
    return found


def _after(
    leaves: list[Leaf],
    learning_rate: jax.typing.ArrayLike | None,
    seen: jax.Array,
    updates: Mapping[str, jax.Array],
    slot: jax.Array,
    kept: tuple[jax.Array, jax.Array],
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    steps, values = kept
    if leaves:
        rate = 1.0 if learning_rate is None else learning_rate
        sizes = seen[:, BEFORE.index("weight_rms")]
        row = jnp.stack([after_step(leaf, rate, sizes[index], updates[leaf.path]) for index, leaf in enumerate(leaves)])
        if learning_rate is None:
            column = AFTER.index("update_size")
            # A matrix without a gradient says nothing about the rate, and experts without tokens may be most of all.
            idle = seen[:, BEFORE.index("idle")] == 1
            row = row.at[:, column].divide(jnp.nanmedian(jnp.where(idle, jnp.nan, row[:, column])))
        values = values.at[slot].set(jnp.concatenate([seen, row], axis=1))
    return steps.at[slot].set(count), values


def _refuse_other_leaves(gradients: Mapping[str, jax.Array], initial: Mapping[str, jax.Array]) -> None:
    seen, expected = (dict.fromkeys(paths, "one") for paths in (gradients, initial))
    refuse_other_tree(seen, expected, "init")


def _refuse_other_params(gradients: Mapping[str, jax.Array], params: Mapping[str, jax.Array]) -> None:
    seen, expected = ({path: array.shape for path, array in arrays.items()} for arrays in (gradients, params))
    refuse_other_tree(seen, expected, "params")
