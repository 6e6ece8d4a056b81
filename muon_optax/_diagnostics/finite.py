"""Counts and reports of NaN and infinity, by leaf."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from muon_optax._diagnostics.leaves import by_path, floating_leaves, namespace, planned
from muon_optax._layouts.paths import brief, show

_LARGEST_COUNT = 2**31 - 1
_LISTED = 8  # Leaves that a message names: when a loss is NaN, so are all gradients.

Results = TypeVar("Results")


def nonfinite_counts(tree: Any) -> dict[str, jax.Array]:
    """Counts the elements of each leaf that are NaN or infinite. For use inside ``jit``.

    Args:
        tree: Any tree of parameters, gradients, updates or activations. Leaves that aren't floating or complex numbers
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
    return by_path((path, _count_nonfinite(value)) for path, value in floating_leaves(tree))


def raise_if_nonfinite(tree: Any, name: str = "tree", step: Any = None) -> None:
    """Raises an error with the path of the first leaf that holds NaN or infinity. For use outside ``jit``.

    It waits for the arrays to be computed, and looks at them on their device; NumPy arrays stay on the host.

    Args:
        tree: Any tree; leaves are left out as in :func:`nonfinite_counts`.
        name: A name for the tree in the message, such as ``"gradients"``.
        step: The training step, for the message.

    Raises:
        FloatingPointError: With the step, the first leaf that holds such elements, how many, the index of the first of
            them, and the counts of other leaves.
        TypeError: If ``name`` is not text; inside ``jit``, where values are not known. Use :func:`nonfinite_counts`
            there.

    Returns:
        ``None``, if all is finite.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> mo.diagnostics.raise_if_nonfinite({"kernel": jnp.array([1.0, jnp.nan])}, "gradients", step=7)
        Traceback (most recent call last):
        FloatingPointError: gradients at step 7: 'kernel' of shape (2,) holds 1 NaN and 0 infinite of 2 elements, ...
    """
    if not isinstance(name, str):
        raise TypeError(
            f"name={brief(name)} is not a text: call raise_if_nonfinite(tree, name, step), as in "
            'raise_if_nonfinite(gradients, "gradients", step).'
        )
    leaves = floating_leaves(tree)
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
    """Wraps ``function`` in :func:`raise_if_nonfinite` of its arguments and its results. For use outside ``jit``.

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
    if not callable(function):
        raise TypeError(f"function={brief(function)} is not a function: give the training step, finite_or_raise(step).")
    if isinstance(first_step, bool) or not isinstance(first_step, int | np.integer):
        raise TypeError(f"first_step={brief(first_step)} is not a whole number: give the step of the first call.")
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


def _count_nonfinite(value: Any) -> jax.Array:
    return _count(~namespace(value).isfinite(value))


_count_on_device = jax.jit(_count_nonfinite)


def _count(chosen: Any) -> jax.Array:
    rows = jnp.sum(jnp.atleast_1d(chosen), axis=-1, dtype=jnp.int32)
    # Bounded: the sum of the rows can't wrap around to zero.
    return jnp.sum(jnp.minimum(rows, _LARGEST_COUNT // max(1, rows.size)), dtype=jnp.int32)


def _report(name: str, step: Any, affected: list[tuple[str, Any, int]], leaves: int) -> str:
    path, value, count = affected[0]
    missing = int(_count(namespace(value).isnan(value)))
    index = tuple(planned(_first, jnp.asarray(~namespace(value).isfinite(value))).tolist())
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
