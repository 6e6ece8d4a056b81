"""Whether a transform treats each parameter on its own, read from what it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

Owners = frozenset[int]
_NOBODY: Owners = frozenset()


def coupled_inputs(
    function: Callable[..., Any], arguments: Sequence[jax.ShapeDtypeStruct], owners: Sequence[int | None]
) -> list[Owners]:
    """For each output of ``function(*arguments)`` the owners of the inputs that it is computed from.

    ``None`` owns nothing. An operation mixes all its operands: more may be listed than is used, and never less.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    return _traced(closed.jaxpr, [_NOBODY if owner is None else frozenset({owner}) for owner in owners])


def _traced(jaxpr: Any, given: Sequence[Owners]) -> list[Owners]:
    # By identity: a literal, which stands where a variable may, can't be looked up.
    known = {id(variable): own for variable, own in zip(jaxpr.invars, given, strict=True)}

    def owned(variables: Sequence[Any]) -> list[Owners]:
        return [known.get(id(variable), _NOBODY) for variable in variables]

    for equation in jaxpr.eqns:
        operands = owned(equation.invars)
        if equation.primitive.name in ("jit", "pjit"):
            # A function of a whole tree, which may take it leaf by leaf.
            results = _traced(equation.params["jaxpr"].jaxpr, operands)
        else:
            results = [_NOBODY.union(*operands)] * len(equation.outvars)
        known |= {id(variable): own for variable, own in zip(equation.outvars, results, strict=True)}
    return owned(jaxpr.outvars)
