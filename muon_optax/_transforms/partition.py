"""The label-based partition, which sends matrices to one transform and everything else to another."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.assign import labels_of
from muon_optax._layouts.assigning.handed_on import handing_on
from muon_optax._layouts.assigning.messages import warn_unknown, warn_without_matrices
from muon_optax._layouts.assigning.resolve import LayoutMap, Layouts, resolve
from muon_optax._layouts.paths import NamedLeaf, has_hidden, named_leaves, show
from muon_optax._mesh.typed import relocate_like, typed_sharding
from muon_optax._transforms.checks.arguments import check_transform
from muon_optax._transforms.checks.updates import (
    params_with_gradients,
    refuse_exchanged,
    refuse_nothing,
    refuse_untrainable,
)
from muon_optax._transforms.state.kept import is_counter, parts_of
from muon_optax._transforms.state.refusals import fit_state

# What refuses a tree by its leaves and their layouts, and what follows both branches, told the step that they took.
Refuse: TypeAlias = Callable[[Any, list[NamedLeaf], LayoutMap], None]
Finish: TypeAlias = Callable[[Any, LayoutMap, jax.Array], Any]


def partition_by_layout(
    matrices: optax.GradientTransformation, others: optax.GradientTransformation, layouts: Layouts = None
) -> optax.GradientTransformationExtraArgs:
    """Applies ``matrices`` to the parameters that have a layout and ``others`` to the rest.

    It is ``optax.partition`` with the labels of :func:`muon_optax.label_params`. The layouts are resolved on the whole
    tree, where siblings can be asked, and handed to the parts in ``matrices`` (:func:`muon_optax.orthogonalize`,
    :func:`muon_optax.scale_by_shape`, ...), which need no ``layouts`` of their own. Updates have the gradients'
    dtypes. States keep the dtypes that ``init`` gave them.

    Args:
        matrices: For leaves with a layout, usually an ``optax.chain`` that holds :func:`muon_optax.orthogonalize`.
        others: For all other leaves, usually ``optax.adamw``.
        layouts: As in :func:`muon_optax.assign_layouts`.

    Returns:
        A transform with the state of ``optax.partition``, whose labels are ``"muon"`` and ``"adamw"``.

    Raises:
        ValueError: At ``init``, for layouts that :func:`muon_optax.assign_layouts` refuses, and for leaves that can't
            be trained (integers, booleans, keys, floats of eight bits and fewer); at ``update``, for such gradients,
            if the tree of the updates is not the one of ``init`` or of ``params``, or if the state keeps something
            else, as another optimizer's does. Messages name the path, or the argument that changed.
        TypeError: At construction, for a value that is not a transform; at ``init``, for ``None`` and for a leaf that
            is not an array.

    Warns:
        UserWarning: At ``init``, as :func:`muon_optax.assign_layouts`.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo, optax
        >>> matrices = optax.chain(mo.orthogonalize(mo.polar_factor()), optax.scale(-0.1))
        >>> optimizer = mo.partition_by_layout(matrices, optax.sgd(0.5))
        >>> gradient = {"kernel": jnp.array([[0.0, 3.0], [2.0, 0.0]]), "bias": jnp.array([1.0, 2.0])}
        >>> updates, _ = optimizer.update(gradient, optimizer.init(gradient))
        >>> updates["bias"].tolist(), updates["kernel"].round(4).tolist()
        ([-0.5, -1.0], [[-0.0, -0.1], [-0.1, -0.0]])
    """
    check_transform("matrices", matrices)
    check_transform("others", others)
    return partition_with(matrices, others, layouts)


def partition_with(
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    layouts: Layouts = None,
    refusals: Sequence[Refuse] = (),
    finish: Finish | None = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`partition_by_layout`, which refuses more, and goes on where both branches end."""

    def partition(tree: Any, leaves: list[NamedLeaf], resolved: LayoutMap) -> optax.GradientTransformationExtraArgs:
        # A function, not the labels themselves: a tree that is an Equinox module is callable, and would be called.
        labels = labels_of(tree, leaves, resolved)
        return optax.partition({"muon": matrices, "adamw": others}, lambda _: labels)

    # How the last state fitted: without jit every step would trace `init` again to check the same state.
    fits: list[tuple[Any, Any]] = []

    def init(params: optax.Params) -> optax.OptState:
        refuse_nothing(params)
        leaves = named_leaves(params)
        for leaf in leaves:
            refuse_untrainable(leaf, show(leaf.path))
        resolved, unknown = resolve(params, leaves, layouts)
        warn_unknown(unknown, leaves)
        if not unknown and layouts is None and _lacks_matrices(params, resolved):
            warn_without_matrices(leaves)
        for refuse in refusals:
            refuse(params, leaves, resolved)
        with handing_on(resolved):
            state = partition(params, leaves, resolved).init(params)
        # Moments of a weakly typed leaf, such as a Python float, would be so too, and step 2 would be traced anew.
        return _like_before(state, state)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        refuse_exchanged(updates, state, params)
        leaves = named_leaves(updates)
        for leaf in leaves:
            refuse_untrainable(leaf, f"The gradient of {show(leaf.path)}")
        if params is not None:
            params = params_with_gradients(updates, leaves, params)
        resolved, _ = resolve(updates, leaves, layouts)
        branches = partition(updates, leaves, resolved)
        # Optax multiplies Python floats by integer counters, which a user's strict promotion would refuse.
        with handing_on(resolved), jax.numpy_dtype_promotion("standard"):
            signature = _signature(state, updates)
            if not fits or fits[0][0] != signature:
                for refuse in refusals:
                    refuse(updates, leaves, resolved)
                same = jax.tree.structure(params) == jax.tree.structure(updates)
                fits[:] = [(signature, fit_state(state, branches.init, params if same else updates, leaves, resolved))]
            fit = fits[0][1]
            before = state if fit is None else fit.unpack(state)
            results, after = branches.update(updates, before, params, **extra_args)
            after = _like_before(after, before)
            if finish is not None:
                results = finish(results, resolved, _step_of(before))
            return _like_before(results, updates), after if fit is None else fit.pack(after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _signature(state: Any, updates: Any) -> Any:
    """The structures and shapes that the check of a state compares."""
    leaves, structure = jax.tree.flatten((state, updates))
    return structure, [jnp.shape(leaf) for leaf in leaves]


def _step_of(state: Any) -> jax.Array:
    """The step that the matrices' branch is at. A foreign transform need not count, and may count otherwise."""
    parts = [part for part in parts_of(state) if part.label == "muon"]
    counters = [leaf.value for part in parts for leaf in part.leaves if is_counter(leaf)]
    return reduce(jnp.maximum, counters, jnp.zeros([], jnp.int32))


def _lacks_matrices(params: Any, resolved: LayoutMap) -> bool:
    """Whether a whole tree that has arrays has no matrix; in a part of a model that is usual."""
    whole = not has_hidden(params)
    arrays = any(jnp.ndim(leaf) for leaf in jax.tree.leaves(params))
    return whole and arrays and all(layout is None for layout in resolved.values())


def _like_before(tree: Any, before: Any) -> Any:
    """``tree`` in the dtypes of ``before`` and, where types say how arrays lie, lying as that did.

    A gradient of another dtype must not change a state for good, nor AdamW's spread moments (ZeRO-1) a parameter.
    """
    return jax.tree.map(_alike, tree, before)


def _alike(value: Any, before: Any) -> jax.Array:
    array = jnp.asarray(value, jax.dtypes.result_type(before))
    if typed_sharding(array) is None or typed_sharding(jnp.asarray(before)) is None:
        return array
    return relocate_like(array, jnp.asarray(before))
