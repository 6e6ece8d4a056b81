"""The orthogonalizing transform, which replaces every matrix of the updates by its nearest orthogonal one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.handed_on import check_matrices, matrices_of
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.functions import check_function
from muon_optax._layouts.layout import Layout
from muon_optax._mesh.exchange import exchange
from muon_optax._mesh.given import as_given, check_given, plan_in_sight
from muon_optax._mesh.typed import gather, relocate_like
from muon_optax._orthogonalizers.batching import map_matrices, map_stacks
from muon_optax._orthogonalizers.coefficients import KELLER, Coefficients
from muon_optax._orthogonalizers.newton_schulz import Method, NewtonSchulz, Products, newton_schulz
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction, Orthogonalizers, for_all
from muon_optax._orthogonalizers.start import Norm

MapMatrices = Callable[[Sequence[jax.Array], Sequence[str]], list[jax.Array]]


def orthogonalize(
    orthogonalizer: Callable[[jax.Array], jax.Array], *, layouts: Layouts = None, shardings: Any = None
) -> optax.GradientTransformation:
    """Replaces every matrix of the updates by ``orthogonalizer(matrix)``.

    On a mesh every matrix is orthogonalized once, by one device: the devices that hold pieces of it send them there and
    get theirs back, as :func:`muon_optax.plan` says. A plan asks the orthogonalizer for two attributes. ``dtype`` is
    that of its products, in which matrices travel where theirs is wider; ``None``: in their own. ``flops(rows, cols)``
    is what one matrix costs. Without them a warning says that matrices travel in their own dtype, at a guessed cost.

    Args:
        orthogonalizer: Takes matrices ``(*batch, rows, cols)``, rows being inputs and columns outputs, to matrices of
            the same shape with singular values near 1: :func:`muon_optax.newton_schulz`,
            :func:`muon_optax.polar_factor` or one of yours. It must treat each matrix of a batch on its own. To wrap
            one, write a class with ``__call__`` that hands on ``dtype`` and ``flops``: a lambda hides them.
        layouts: How leaves are seen as matrices, as in :func:`muon_optax.assign_layouts`. Inside
            :func:`muon_optax.partition_by_layout` and :func:`muon_optax.muon` it is not needed: they hand it on.
        shardings: How the parameters lie on a mesh: a tree like them of ``NamedSharding``, or of arrays or
            ``ShapeDtypeStruct`` that carry one, or a :func:`muon_optax.plan`. Not needed where the mesh has Explicit
            axes, since there types say it. ``None`` under Auto axes leaves everything to XLA, which is correct and
            does each matrix's work on many devices. Inside ``shard_map`` all is local, and this is ignored.

    Returns:
        A transform without state. Updates keep their shape and dtype.

    Raises:
        ValueError: At ``init``, if a leaf has no layout (its path is named) or one that does not fit; at construction,
            for shardings on several meshes; at ``init`` or ``update``, for shardings or a plan of another tree.
        TypeError: At construction, if ``orthogonalizer`` is not a function or ``shardings`` holds anything else; at
            ``update``, if the orthogonalizer changes a shape.

    Warns:
        UserWarning: On a mesh, if ``orthogonalizer`` lacks ``dtype`` or ``flops``.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.orthogonalize(mo.polar_factor())
        >>> gradient = {"w": jnp.array([[0.0, 3.0], [2.0, 0.0]])}
        >>> updates, _ = transform.update(gradient, transform.init(gradient))
        >>> updates["w"].round(4).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if not callable(orthogonalizer):
        raise TypeError(
            f"orthogonalizer={orthogonalizer!r} is not a function: pass one from matrices to matrices, such as "
            "muon_optax.newton_schulz() or muon_optax.polar_factor()."
        )
    give = "Give a function from matrices to matrices, such as muon_optax.newton_schulz()."
    check_function("orthogonalizer", orthogonalizer, "matrices", give)

    return orthogonalize_by(for_all(orthogonalizer), layouts=layouts, shardings=shardings)


def orthogonalize_by(
    orthogonalizers: Orthogonalizers, *, layouts: Layouts = None, shardings: Any = None
) -> optax.GradientTransformation:
    """:func:`orthogonalize` with the orthogonalizer of each path, under one plan."""
    checked = {name: _keeping_shapes(function) for name, function in orthogonalizers.functions.items()}
    given = as_given(shardings)

    def init(params: optax.Params) -> optax.EmptyState:
        check_matrices(params, layouts)
        check_given(given, params)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = [
            (leaf._replace(value=jnp.asarray(leaf.value)), layout) for leaf, layout in matrices_of(updates, layouts)
        ]
        arrays = [leaf.value for leaf, _ in leaves]
        plan = plan_in_sight(given, leaves, params, orthogonalizers)
        if plan is None:
            names = [orthogonalizers.name_of(leaf.path) for leaf, _ in leaves]
            run = partial(_each_by_its_own, map_matrices, checked)
            orthogonal = _on_one_device(run, arrays, [layout for _, layout in leaves], names)
        else:
            # By path: a plan of the same parameters in another container may hold them in another order.
            run = exchange(plan, partial(_each_by_its_own, map_stacks, checked))
            results = run({leaf.path: leaf.value for leaf, _ in leaves})
            orthogonal = [results[leaf.path] for leaf, _ in leaves]
        return jax.tree.unflatten(jax.tree.structure(updates), orthogonal), state

    return optax.GradientTransformation(init, update)


def orthogonalize_via_newton_schulz(
    coefficients: Coefficients = KELLER,
    *,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
    method: Method = "auto",
    norm: Norm = "frobenius",
    products: Products = "xla",
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformation:
    """Orthogonalizes every matrix of the updates by :func:`muon_optax.newton_schulz`, which is the heart of Muon.

    Args:
        coefficients: One ``(a, b, c)`` per step.
        dtype: The dtype of the products.
        method: ``"auto"``, ``"direct"`` or ``"gram"``.
        norm: ``"frobenius"``, ``"schatten4"`` or ``"aol"``.
        products: ``"xla"`` or ``"symmetric"``.
        layouts: As in :func:`orthogonalize`.
        shardings: As in :func:`orthogonalize`.

    Returns:
        A transform without state. Updates keep their shape and dtype.

    Raises:
        ValueError: For arguments that :func:`muon_optax.newton_schulz` refuses, and as :func:`orthogonalize`.

    References:
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo, optax
        >>> transform = optax.chain(optax.trace(0.95, nesterov=True), mo.orthogonalize_via_newton_schulz())
        >>> gradient = {"w": jnp.array([[0.0, 3.0], [2.0, 0.0]])}
        >>> updates, _ = transform.update(gradient, transform.init(gradient))
        >>> bool(abs(updates["w"][0, 1] - 1) < 0.4)
        True
    """
    orthogonalizer = newton_schulz(coefficients, dtype=dtype, method=method, norm=norm, products=products)
    return orthogonalize(orthogonalizer, layouts=layouts, shardings=shardings)


def _on_one_device(
    map_all: MapMatrices, arrays: list[jax.Array], layouts: list[Layout], names: list[str]
) -> list[jax.Array]:
    blocks = [layout.to_matrices(gather(array)) for array, layout in zip(arrays, layouts, strict=True)]
    of_blocks = [name for name, own in zip(names, blocks, strict=True) for _ in own]
    results = iter(map_all(list(chain.from_iterable(blocks)), of_blocks))
    return [
        relocate_like(layout.from_matrices(tuple(islice(results, len(matrices))), array.shape), array)
        for array, layout, matrices in zip(arrays, layouts, blocks, strict=True)
    ]


def _each_by_its_own(
    map_all: Callable[[MatrixFunction, Sequence[jax.Array]], list[jax.Array]],
    functions: Mapping[str, MatrixFunction],
    arrays: Sequence[jax.Array],
    names: Sequence[str],
) -> list[jax.Array]:
    """``map_all`` for the arrays of each orthogonalizer, since only those can run together."""
    results: dict[int, jax.Array] = {}
    for name in dict.fromkeys(names):
        own = [position for position, other in enumerate(names) if other == name]
        results.update(zip(own, map_all(functions[name], [arrays[position] for position in own]), strict=True))
    return [results[position] for position in range(len(arrays))]


def _keeping_shapes(orthogonalizer: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    # It keeps them, and JAX finds what it traced of it in other optimizers, which it can't of a function made here.
    if isinstance(orthogonalizer, NewtonSchulz):
        return orthogonalizer

    def checked(matrices: jax.Array) -> jax.Array:
        result = orthogonalizer(matrices)
        shape = getattr(result, "shape", None)
        if shape != matrices.shape:
            returned = f"changed the shape {matrices.shape} to {shape}" if shape is not None else f"returned {result!r}"
            raise TypeError(
                f"The orthogonalizer {returned}; it must return matrices of the shape {matrices.shape} that it gets."
            )
        return result.astype(matrices.dtype)

    return checked
