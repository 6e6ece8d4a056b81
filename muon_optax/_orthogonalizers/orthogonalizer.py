"""The protocol of an orthogonalizer, a function of matrices that may state its cost and the dtype of its products."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax

MatrixFunction: TypeAlias = Callable[[jax.Array], jax.Array]


@runtime_checkable
class Orthogonalizer(Protocol):
    """The protocol of orthogonalizers: a function of matrices, with the two attributes that a mesh plan reads.

    Any function from matrices ``(*batch, rows, cols)`` to matrices of the same shape will do. On a mesh a plan also
    asks for ``dtype``, that of the products, in which matrices travel (``None`` for their own), and for ``flops(rows,
    cols)``, the cost of one matrix, by which owners are chosen. A function without them is planned with a warning.

    Example:
        >>> import muon_optax as mo
        >>> isinstance(mo.newton_schulz(), mo.Orthogonalizer), isinstance(lambda matrices: matrices, mo.Orthogonalizer)
        (True, False)
    """

    @property
    def dtype(self) -> Any:
        """The dtype of the products; ``None`` for the matrices' own."""

    def __call__(self, matrices: jax.Array) -> jax.Array:
        """Matrices ``(*batch, rows, cols)`` with singular values near 1."""
        ...

    def flops(self, rows: int, cols: int) -> float:
        """Floating-point operations for one matrix."""
        ...


class Orthogonalizers(NamedTuple):
    """The orthogonalizer of every parameter: one for all, and others by path.

    They have names and no numbers of their own: a plan is made once, and its names hold for functions made again.
    """

    functions: Mapping[str, MatrixFunction]  # by name; "" for parameters that no path glob names
    name_of: Callable[[str], str]  # the name at a path

    def at(self, path: str) -> MatrixFunction:
        """The orthogonalizer of the parameter at ``path``."""
        return self.functions[self.name_of(path)]


def for_all(orthogonalizer: MatrixFunction) -> Orthogonalizers:
    """One orthogonalizer for every parameter."""
    return Orthogonalizers({"": orthogonalizer}, lambda _: "")
