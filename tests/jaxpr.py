"""What a function will compute, read from its jaxpr: the matrix products and what they cost."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Product(NamedTuple):
    """One ``dot_general``."""

    operands: tuple[str, str]
    result: str
    multiplications: int
    is_exact: bool


def matrix_products(function: Callable[..., Any], *shapes: tuple[int, ...]) -> list[Product]:
    """Every matrix product of ``function``, called with float32 arrays of these shapes."""
    closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return [_product(equation) for equation in equations(closed) if equation.primitive.name == "dot_general"]


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations that a CPU is given, those of inner jaxprs too: other platforms' branches are left out."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        params = dict(equation.params)
        platforms = params.get("branches_platforms")
        if platforms:  # jax.lax.platform_dependent; the default, of platforms None, is the last one
            ours = next(place for place, names in enumerate(platforms) if names is None or "cpu" in names)
            params["branches"] = params["branches"][ours]
        for value in params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(inner)


def _product(equation: Any) -> Product:
    left, right = (operand.aval for operand in equation.invars)
    (contracted, _), _ = equation.params["dimension_numbers"]
    result = equation.outvars[0].aval
    precision = equation.params["precision"]
    asked = set(precision) if isinstance(precision, tuple) else {precision}
    return Product(
        operands=(str(left.dtype), str(right.dtype)),
        result=str(result.dtype),
        multiplications=math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted),
        is_exact=asked == {jax.lax.Precision.HIGHEST},
    )
