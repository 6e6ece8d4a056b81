"""The layers whose results a model returns, found by following its output back through the traced program."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from muon_optax._layouts.paths import named_leaves

_CONTRACTIONS = ("dot_general", "conv_general_dilated")
# What they hold is followed as if it stood in the program itself. A loop is not: its results come from many layers.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_LOOPS = ("scan", "while", "cond")


class _Step(NamedTuple):
    """One operation of the program, on numbered values."""

    name: str
    operands: tuple[int | None, ...]  # literals and constants come from nowhere


class _Program:
    """The program of ``function``, flat: from each value to the step that makes it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        def arrays(*given: Any) -> list[jax.Array]:
            # A model may return more than arrays: a distribution, a name.
            return [leaf for leaf in jax.tree.leaves(function(*given)) if isinstance(leaf, jax.Array)]

        closed = jax.make_jaxpr(arrays)(*arguments)
        self.steps: list[_Step] = []
        self.makers: dict[int, int] = {}  # from a value to its step
        self.numbers = itertools.count()
        self.arguments = tuple(self._new() for _ in closed.jaxpr.invars)
        self.results = self._add(closed.jaxpr, self.arguments)

    def _new(self) -> int:
        return next(self.numbers)

    def _add(self, jaxpr: Any, arguments: tuple[int | None, ...]) -> tuple[int | None, ...]:
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))

        def value(variable: Any) -> int | None:
            return None if hasattr(variable, "val") else known.get(variable)

        for equation in jaxpr.eqns:
            operands = tuple(map(value, equation.invars))
            inner = next((equation.params[key] for key in _CALLS if key in equation.params), None)
            if inner is not None and equation.primitive.name not in _LOOPS:
                inner = getattr(inner, "jaxpr", inner)
                results = self._add(inner, operands[len(operands) - len(inner.invars) :])
                known.update(zip(equation.outvars, results, strict=True))
                continue
            self.steps.append(_Step(equation.primitive.name, operands))
            for variable in equation.outvars:
                made = known[variable] = self._new()
                self.makers[made] = len(self.steps) - 1
        return tuple(map(value, jaxpr.outvars))

    def is_product(self, step: int) -> bool:
        """Whether what goes in is mixed: a contraction, or a loop that may hold some."""
        return self.steps[step].name in (*_CONTRACTIONS, *_LOOPS)

    def behind(self, result: int | None) -> tuple[set[int], set[int]]:
        """The nearest products that ``result`` comes from, and the arguments that get there past all products."""
        products, arguments, seen, ahead = set(), set(), set(), [result]
        while ahead:
            value = ahead.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            step = self.makers.get(value)
            if step is None:
                arguments.add(value)
            elif self.is_product(step):
                products.add(step)
            else:
                ahead += self.steps[step].operands
        return products, arguments


def last_layers(function: Callable[..., Any], params: Any, *others: Any) -> set[str] | None:
    """The paths of the weights whose product with something ``function`` returns, and passes to no other product.

    Args:
        function: Called with ``params`` and ``others``, or their abstract shapes. It returns what the model does.
        params: A tree of arrays.
        *others: All other arguments.

    Returns:
        Paths of weights. A result that comes from several products, as behind a residual connection, has no last layer.
        ``None`` if ``function`` returns no array to follow.
    """
    program = _Program(function, params, *others)
    if not program.results:
        return None
    paths = dict(zip(program.arguments, (leaf.path for leaf in named_leaves(params)), strict=False))
    weights: dict[int, set[int]] = {}  # of each product
    passed: set[int] = set()  # products whose results another product takes
    hidden: set[int] = set()  # products that read what other parameters made
    for number, step in enumerate(program.steps):
        if not program.is_product(number):
            continue
        weights[number] = set()
        for operand in step.operands:
            products, arguments = program.behind(operand)
            if not products and arguments.issubset(paths):
                weights[number] |= arguments
            else:
                passed |= products
                if arguments & paths.keys() or any(weights[product] or product in hidden for product in products):
                    hidden.add(number)
    last, taken = set(), set()
    for result in program.results:
        products, _ = program.behind(result)
        if len(products) == 1:
            last |= products & hidden
    for number in passed:
        taken |= weights[number]
    contractions = (number for number in last if program.steps[number].name in _CONTRACTIONS)
    return {paths[value] for number in contractions for value in weights[number] - taken}
