"""Whether a transform treats each parameter on its own, read from what it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def coupled_inputs(
    function: Callable[..., Any], arguments: Sequence[jax.ShapeDtypeStruct], owners: Sequence[int | None]
) -> list[frozenset[int]]:
    """For each output of ``function(*arguments)`` the owners of the inputs that it is computed from.

    ``None`` owns nothing. An operation mixes all its operands: more may be listed than is used, and never less.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    none: frozenset[int] = frozenset()
    given = [none if owner is None else frozenset({owner}) for owner in owners]
    # By identity: a literal, which stands where a variable may, can't be looked up.
    known = {id(variable): own for variable, own in zip(closed.jaxpr.invars, given, strict=True)}
    for equation in closed.jaxpr.eqns:
        mixed = none.union(*(known.get(id(variable), none) for variable in equation.invars))
        known |= {id(variable): mixed for variable in equation.outvars}
    return [known.get(id(variable), none) for variable in closed.jaxpr.outvars]
