"""Measurements of a training step, leaf by leaf: what is not finite, how large updates are, how near to orthogonal."""

import inspect
import itertools
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.assigning.messages import MuonWarning
from muon_optax._layouts.assigning.resolve import Layouts, resolve
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves, show
from muon_optax._orthogonalizers.precision import accumulation_dtype, near_one
from muon_optax._orthogonalizers.step import gram
from muon_optax._state.kept_arrays import kept_arrays
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.scales import Scale, scale_factors, scale_function

_LARGEST_COUNT = 2**31 - 1
_LISTED = 8  # Leaves that a message names: when a loss is NaN, so are all gradients.

Results = TypeVar("Results")


def nonfinite_counts(tree: Any) -> dict[str, jax.Array]:
    """How many elements of each leaf are NaN or infinite. For use inside ``jit``.

    Args:
        tree: Parameters, gradients, updates, activations: any tree. Leaves that are no floating or complex numbers
            (integers, booleans, random keys, functions) are left out, and so are ``None`` and masked leaves.

    Returns:
        A mapping from leaf path to an int32 scalar. It is exact up to 2^31 - 1 elements a leaf; for larger leaves it
        may be too small, but it is zero only if all elements are finite.

    Raises:
        ValueError: If two leaves have the same path.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> gradients = {"kernel": jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]]), "bias": jnp.ones(2)}
        >>> {path: int(count) for path, count in jax.jit(mo.diagnostics.nonfinite_counts)(gradients).items()}
        {'bias': 0, 'kernel': 2}
    """
    return _by_path((path, _count_nonfinite(value)) for path, value in _floating_leaves(tree))


def update_rms(updates: Any) -> dict[str, jax.Array]:
    """The root mean square of each leaf, ``sqrt(mean(|x|^2))``. For use inside ``jit``.

    Squares neither overflow nor underflow, since the largest element is divided out first; subnormal numbers may count
    as 0. Divide by :func:`predicted_update_rms` to see whether updates have the size that they should have.

    Args:
        updates: What ``optimizer.update`` returned, or any other tree; leaves are left out as in
            :func:`nonfinite_counts`.

    Returns:
        A mapping from leaf path to a float32 scalar (float64 for float64 and complex128), in the unit of the updates. 0
        for an empty leaf, NaN for one that holds NaN, infinity for one that holds infinities and no NaN.

    Raises:
        ValueError: If two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> float(mo.diagnostics.update_rms({"kernel": jnp.array([[3e30, 4e30], [0.0, 0.0]])})["kernel"])
        2.5e+30
    """
    return _by_path((path, _rms(jnp.asarray(value))) for path, value in _floating_leaves(updates))


def predicted_update_rms(
    params: Any,
    scale: Scale = "moonlight",
    layouts: Layouts = None,
    learning_rate: jax.typing.ArrayLike = 1.0,
) -> dict[str, jax.typing.ArrayLike]:
    """The root mean square that an exactly orthogonal update has, for each leaf that is seen as matrices.

    A ``fan_in x fan_out`` matrix with all singular values 1 has the Frobenius norm ``sqrt(min(fan_in, fan_out))``, so
    the leaf's RMS is ``learning_rate * factor / sqrt(max(fan_in, fan_out))``: with moonlight, 0.2 times the learning
    rate. The blocks of a split have factors of their own and count by their elements:
    ``sqrt(sum_k factor_k^2 min(fan_in, fan_out_k) / (fan_in sum_k fan_out_k))``.

    The measured value divided by this one is the root mean square of the singular values that the orthogonalizer left:
    1 for :func:`muon_optax.polar_factor` and in :func:`muon_optax.coefficient_range` for others, times ``sqrt(r / n)``
    for rank ``r`` of ``n``. Weight decay moves it by at most ``weight_decay / factor`` times the parameter's spectral
    norm.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        scale: As given to :func:`muon_optax.muon`. Default moonlight, its default too.
        layouts: As given to :func:`muon_optax.muon`.
        learning_rate: A number >= 0 or a scalar array, which may be traced; of a schedule, its value at the step.
            Default 1, for updates that no learning rate has multiplied yet.

    Returns:
        A mapping from leaf path to a Python number, known before anything runs (a scalar array, if ``learning_rate`` is
        one). 0 for an empty leaf. Leaves without a layout, which AdamW trains, are left out.

    Raises:
        ValueError: For an unknown scale, a learning rate out of range, and as :func:`muon_optax.assign_layouts`.
        TypeError: For a learning rate that is not a number, such as a schedule.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}
        >>> mo.diagnostics.predicted_update_rms(params, learning_rate=0.01)
        {'kernel': 0.002}
    """
    scale_function(scale)
    check_number("learning_rate", learning_rate, "use a number >= 0, or the value of a schedule at the step", 0.0)
    return _by_path(
        (path, learning_rate * _orthogonal_rms(scale, layout, np.shape(value)))
        for path, value, layout in _matrix_leaves(params, layouts)
    )


def orthogonality_error(updates: Any, layouts: Layouts = None) -> dict[str, jax.Array]:
    """How far each leaf's matrices are from having equal singular values. For use inside ``jit``.

    With ``G`` the smaller of ``X X^T`` and ``X^T X``, of size ``n``, and ``mu = trace(G) / n``, the error is
    ``||G / mu - I|| / sqrt(n)`` (Frobenius): the standard deviation of the squared singular values, divided by their
    mean. It is 0 for a multiple of an orthogonal matrix, about twice the relative spread of the singular values near
    there, and ``sqrt(n / r - 1)`` for rank ``r``, at most ``sqrt(n - 1)``. It does not depend on the scale: final
    updates will do, weight decay included. Rounding to bfloat16 alone gives up to 0.0025.

    The matrices of a leaf, from its batch axes and its split, are taken together by a root mean square over all their
    singular values. It costs one product a matrix, in full float32 (of 16-bit updates in 16 bits, which is exact).

    Args:
        updates: What an orthogonalizer or ``optimizer.update`` returned.
        layouts: As given to :func:`muon_optax.muon`.

    Returns:
        A mapping from leaf path to a float32 scalar (float64 for float64) without unit. All-zero matrices have no
        directions and are left out of the mean; a leaf with no other, or an empty one, has 0. NaN for a leaf that holds
        NaN or infinities. Leaves without a layout are left out.

    Raises:
        ValueError: As :func:`muon_optax.assign_layouts`, and if two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> updates = {"rotation": jnp.array([[0.0, -5.0], [5.0, 0.0]]), "rank_one": jnp.ones((2, 2))}
        >>> {path: round(float(error), 4) for path, error in mo.diagnostics.orthogonality_error(updates).items()}
        {'rank_one': 1.0, 'rotation': 0.0}
    """
    return _by_path(
        (path, _planned(partial(_orthogonality_error, layout), jnp.asarray(value)))
        for path, value, layout in _matrix_leaves(updates, layouts)
    )


def raise_if_nonfinite(tree: Any, name: str = "tree", step: Any = None) -> None:
    """Raises an error with the path of the first leaf that holds NaN or infinity. For use outside ``jit``.

    It waits for the arrays to be computed, and looks at them on their device; NumPy arrays stay on the host.

    Args:
        tree: Any tree; leaves are left out as in :func:`nonfinite_counts`.
        name: What the tree is, for the message: ``"gradients"``.
        step: Where training is, for the message.

    Raises:
        FloatingPointError: With the step, the first leaf that holds such elements, how many, the index of the first of
            them, and the counts of other leaves.
        TypeError: Inside ``jit``, where values are not known: use :func:`nonfinite_counts` there.

    Returns:
        ``None``, if all is finite.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> mo.diagnostics.raise_if_nonfinite({"kernel": jnp.array([1.0, jnp.nan])}, "gradients", step=7)
        Traceback (most recent call last):
        FloatingPointError: gradients at step 7: 'kernel' of shape (2,) holds 1 NaN and 0 infinite of 2 elements, ...
    """
    leaves = _floating_leaves(tree)
    counts = [(_count_on_device if isinstance(value, jax.Array) else _count_nonfinite)(value) for _, value in leaves]
    traced = [path for (path, _), count in zip(leaves, counts, strict=True) if isinstance(count, Tracer)]
    if traced:
        raise TypeError(
            f"{name}: inside jit or vmap the value of {show(traced[0])} is not known. Return what "
            "muon_optax.diagnostics.nonfinite_counts gives there, or call raise_if_nonfinite on the results outside."
        )
    # One transfer for all leaves, after all counts have been started.
    numbers = zip(leaves, jax.device_get(counts), strict=True)
    affected = [(path, value, int(count)) for (path, value), count in numbers if count]
    if affected:
        raise FloatingPointError(_report(name, step, affected, len(leaves)))


def finite_or_raise(
    function: Callable[..., Results], name: str | None = None, first_step: int = 0
) -> Callable[..., Results]:
    """``function`` with :func:`raise_if_nonfinite` of its arguments and of its results. For use outside ``jit``.

    Around a jitted training step, whose arguments may be donated, or around ``optimizer.update``: the error says
    whether the values came in or began here. Each call waits for its results, so the device idles between steps.

    Args:
        function: From any trees to any tree, with nothing in them that is infinite by intent.
        name: For the message; ``None`` for the function's own name.
        first_step: The step of the first call, which the message counts from. Default 0.

    Returns:
        A function of the same arguments and results. The paths of arguments begin with their names.

    Raises:
        TypeError: If ``function`` can't be called.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> train_step = mo.diagnostics.finite_or_raise(jax.jit(lambda params: {"w": jnp.log(params["w"])}), "step")
        >>> train_step({"w": jnp.zeros(2)})
        Traceback (most recent call last):
        FloatingPointError: results of step at step 0: 'w' of shape (2,) holds 0 NaN and 2 infinite of 2 elements, ...
    """
    signature = inspect.signature(function)
    shown = name or getattr(function, "__name__", type(function).__name__)
    steps = itertools.count(first_step)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Results:
        step = next(steps)
        # Ordered, since JAX sorts the keys of a plain dict and the first leaf would not be one of the first argument.
        arguments = OrderedDict(signature.bind(*args, **kwargs).arguments)
        raise_if_nonfinite(arguments, f"arguments of {shown}", step)
        results = function(*args, **kwargs)
        raise_if_nonfinite(results, f"results of {shown}", step)
        return results

    return checked


def moved_without_gradient(
    optimizer: optax.GradientTransformation, state: optax.OptState, params: optax.Params, **extra_args: Any
) -> dict[str, float]:
    """Parameters that never got a gradient and yet move: decay shrinks them. For use outside ``jit``, once.

    A parameter behind ``stop_gradient``, a layer that the loss does not reach, a table that no batch reads: all get
    gradients of zeros, which an optimizer takes for gradients. Ask after the first steps. That none came is read from
    ``state``: all that is kept of the parameter (momentum, moments) is zero.

    Args:
        optimizer: The run's.
        state: Its state. A parameter of which it keeps nothing, as ``optax.sgd`` does, is left out.
        params: The parameters.
        **extra_args: What ``optimizer.update`` needs besides, such as ``max_logits``.

    Returns:
        A mapping from the paths of these parameters to the share of its norm by which each moves in a step.

    Warns:
        MuonWarning: With the paths, if there are any.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"backbone": jnp.ones((4, 4)), "head": jnp.ones(4)}
        >>> optimizer = mo.hold_idle(mo.muon(0.01, layouts={"backbone": "io"}))
        >>> mo.diagnostics.moved_without_gradient(optimizer, optimizer.init(params), params)
        {}
    """
    kept: dict[str, list[Any]] = {}
    for one in kept_arrays(state):
        # Radii are norms of the parameter.
        if one.path and not one.counts and one.field != "radii":
            kept.setdefault(one.path, []).extend(one.values)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, state, params, **extra_args)
    sizes = zip(update_rms(params).items(), update_rms(updates).values(), strict=True)
    shares = {
        path: float(moved) / float(size)
        for (path, size), moved in sizes
        if float(moved) and path in kept and not any(bool(jnp.any(value != 0)) for value in kept[path])
    }
    if shares:
        listed = ", ".join(
            f"{show(path)} (by {share:.2g} of its size)" for path, share in list(shares.items())[:_LISTED]
        )
        more = f" and {len(shares) - _LISTED} more" if len(shares) > _LISTED else ""
        warnings.warn(
            f"{len(shares)} parameter{'s' * (len(shares) > 1)} never got a gradient and move{'s' * (len(shares) == 1)} "
            f"at each step: {listed}{more}. If the loss should reach them, look for the break. If they are frozen, "
            "wrap the optimizer in muon_optax.hold_idle, or leave them out of what it trains.",
            MuonWarning,
            stacklevel=2,
        )
    return shares


def _floating_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = [(leaf.path, leaf.value) for leaf in named_leaves(tree)]
    return [leaf for leaf in leaves if jnp.issubdtype(getattr(leaf[1], "dtype", type(leaf[1])), jnp.inexact)]


def _matrix_leaves(tree: Any, layouts: Layouts) -> Iterator[tuple[str, Any, Layout]]:
    leaves = named_leaves(tree)
    # Without assign_layouts's warning, which the optimizer's `init` has given already.
    resolved, _ = resolve(tree, leaves, layouts)
    for leaf in leaves:
        if (layout := resolved[leaf.path]) is not None:
            yield leaf.path, leaf.value, layout


def _by_path(measured: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    by_path: dict[str, Any] = {}
    for path, value in measured:
        if path in by_path:
            raise ValueError(f"Two leaves have the path {show(path)}: rename one, and both can be reported.")
        by_path[path] = value
    return by_path


def _namespace(value: Any) -> Any:
    # NumPy for what JAX does not hold yet: JAX would round a float64 array to float32 first, where 1e300 is infinite.
    return jnp if isinstance(value, jax.Array) else np


def _count_nonfinite(value: Any) -> jax.Array:
    return _count(~_namespace(value).isfinite(value))


_count_on_device = jax.jit(_count_nonfinite)


def _count(chosen: Any) -> jax.Array:
    rows = jnp.sum(jnp.atleast_1d(chosen), axis=-1, dtype=jnp.int32)
    # Bounded: the sum of the rows can't wrap around to zero.
    return jnp.sum(jnp.minimum(rows, _LARGEST_COUNT // max(1, rows.size)), dtype=jnp.int32)


def _planned(function: Callable[[jax.Array], jax.Array], array: jax.Array) -> Any:
    """``function(array)``, a small array, where the array's type may say that it is sharded."""
    sharding = jax.typeof(array).sharding
    if all(part is None for part in sharding.spec):
        return function(array)
    # Under Explicit axes products and indices of sharded arrays are refused; under Auto ones XLA plans them.
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(sharding.mesh, PartitionSpec()))(array)


@jax.jit  # outside jit too, one program for each shape
def _rms(array: jax.Array) -> jax.Array:
    magnitudes = jnp.abs(array)
    magnitudes = magnitudes.astype(accumulation_dtype(magnitudes.dtype))
    limits = jnp.finfo(magnitudes.dtype)
    # The largest, or near it at the ends of the range, so that its reciprocal is a normal number. One factor and not
    # two: XLA would join two to their product, which may be infinite.
    unit = jnp.clip(jnp.max(magnitudes, initial=0), 2 * limits.tiny, limits.max / 8)
    normalized = magnitudes * (1 / unit)
    return unit * jnp.sqrt(jnp.sum(normalized * normalized) / max(1, array.size))


def _orthogonal_rms(scale: Scale, layout: Layout, shape: tuple[int, ...]) -> float:
    if math.prod(shape) == 0:
        return 0.0
    fan_in, blocks = layout.fan_in(shape), layout.blocks(shape)
    factors = scale_factors(scale, layout, shape)
    squares = sum(factor**2 * min(fan_in, fan_out) for factor, fan_out in zip(factors, blocks, strict=True))
    return math.sqrt(squares / (fan_in * sum(blocks)))


@partial(jax.jit, static_argnums=0)
def _orthogonality_error(layout: Layout, array: jax.Array) -> jax.Array:
    dtype, accumulated = array.dtype, accumulation_dtype(array.dtype)
    # Products of 16-bit numbers are exact in float32, and many times cheaper than those of float32 numbers.
    multiplied = dtype if jnp.finfo(dtype).bits == 16 else accumulated
    squares = values = jnp.zeros((), accumulated)
    for matrices in layout.to_matrices(array) if array.size else ():
        G = gram(near_one(matrices, multiplied))
        size = G.shape[-1]
        mean = jnp.trace(G, axis1=-2, axis2=-1)[..., None, None] / size
        identity = jnp.broadcast_to(jnp.eye(size, dtype=accumulated), G.shape)
        deviations = jnp.where(mean == 0, 0, G / jnp.where(mean == 0, 1, mean) - identity)
        squares += jnp.sum(deviations * deviations)
        values += size * jnp.sum(mean != 0, dtype=accumulated)
    return jnp.sqrt(squares / jnp.maximum(values, 1))


def _report(name: str, step: Any, affected: list[tuple[str, Any, int]], leaves: int) -> str:
    path, value, count = affected[0]
    missing = int(_count(_namespace(value).isnan(value)))
    index = tuple(_planned(_first, jnp.asarray(~_namespace(value).isfinite(value))).tolist())
    listed = ", ".join(f"{show(path)} {count}" for path, _, count in affected[:_LISTED])
    more = f" and {len(affected) - _LISTED} more" if len(affected) > _LISTED else ""
    return (
        f"{name}{'' if step is None else f' at step {step}'}: {show(path)} of shape {np.shape(value)} holds {missing} "
        f"NaN and {count - missing} infinite of {np.size(value)} elements, the first at index {index}. {len(affected)} "
        f"of {leaves} leaves are affected: {listed}{more}. To skip such steps wrap the optimizer in "
        "optax.apply_if_finite; to find the operation repeat the step under jax_debug_nans."
    )


@jax.jit
def _first(bad: jax.Array) -> jax.Array:
    """The index of the first ``True``, ``(ndim,)``; axis by axis, since a flat index need not fit in 32 bits."""
    index = []
    while bad.ndim:
        index.append(jnp.argmax(jnp.any(bad, axis=tuple(range(1, bad.ndim)))))
        bad = bad[index[-1]]
    return jnp.array(index, jnp.int32)
