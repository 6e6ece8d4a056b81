"""A scope of a model, which is everything below a path, and how its layers are stacked."""

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

from muon_optax._layouts.tree.layer_stacks import UNSTACKED, LayerStack, LayerStacks, Shape, without_ones


class Pair(NamedTuple):
    """The shapes of a weight and of its bias."""

    weight: Shape
    bias: Shape
    outputs_first: bool

    def allows(self, stack: LayerStack) -> bool:
        """Whether the bias is on the weight's output axes, both stacked so."""
        if not (stack.fits(self.weight) and stack.fits(self.bias)):
            return False
        weight, bias = stack.core(self.weight), without_ones(stack.core(self.bias))
        if not bias:
            return False  # one number a layer
        if weight[-len(bias) :] == bias and not self.outputs_first:
            return True
        # Haliax's layers have several output axes; without a stack one is likelier, and the other axis counts layers.
        if self.outputs_first and stack.sizes and bias in (weight[: len(bias)], weight[-len(bias) :]):
            return True
        return len(bias) == 1 and bias[0] in (weight[0], weight[-2])

    def allows_inputs_within(self, stack: LayerStack) -> bool:
        """The same, or the bias lacks one axis within: heads of an Einsum come first, positions of a ConvLocal."""
        if self.allows(stack):
            return True
        stacked = bool(stack.sizes) and stack.fits(self.weight) and stack.fits(self.bias)
        weight, bias = stack.core(self.weight), stack.core(self.bias)
        without_one = ((*weight[:axis], *weight[axis + 1 :]) for axis in range(1, len(weight) - 1))
        return stacked and not self.outputs_first and bias in without_one


class Scope:
    """The evidence below a path for or against a stack of layers."""

    def __init__(self) -> None:
        self.norms: set[Shape] = set()
        self.widths: set[Shape] = set()  # norms of the residual stream, not of queries and keys
        self.kernels: set[Shape] = set()  # more than two axes
        self.weights: set[Shape] = set()
        self.shapes: set[Shape] = set()
        self.pairs: set[Pair] = set()
        self.has_convolution = False
        self.has_flat_weight = False
        self.has_unnamed = False  # a kernel whose name is not a weight's
        self.has_outputs_first = False  # as frameworks store them that stack in front, never on axis 1
        self.queries: set[Shape] = set()
        self.outs: set[Shape] = set()
        self.has_others = False  # kernels of more than two axes that are not attention's
        self.inputs: dict[int, int] = {}  # the number of weights, by their number of inputs

    @cached_property
    def told(self) -> LayerStacks:
        """The stacks that the scope's norms and biases allow; empty where they show nothing."""
        found = self._by_norms()
        if found:
            return LayerStacks(found, "norms")
        if any(len(norm) == 1 for norm in self.norms) or any(len(pair.bias) == 1 for pair in self.pairs):
            return LayerStacks((UNSTACKED,), "vectors")
        return LayerStacks(self._allowed, "biases") if len(self._allowed) == 1 else LayerStacks()

    @cached_property
    def likely(self) -> tuple[LayerStack, ...]:
        """The stacks that shapes suggest, where all leaves share an axis and the kernels fit each other without it."""
        kernels = self.kernels
        if (
            self.has_convolution
            or self.has_flat_weight
            or self.has_unnamed
            or not kernels
            or min(map(len, self.shapes)) < 2
        ):
            return ()
        if self.attention_fits(UNSTACKED) or self.may_be_heads:
            return ()
        various = len(kernels) > 1 or (bool(self.queries) and bool(self.outs))
        front, behind = ({shape[axis] for shape in self.shapes} for axis in (0, 1))
        found = ()
        if len(front) == 1 and various and _meet(kernels, 1):
            found = (LayerStack(0, tuple(front)),)
        # Kernels that agree in their first size too may be dense layers of several axes, or a stack in front.
        behind = set() if self.has_outputs_first else behind
        if len(behind) == 1 and _meet(kernels, 0) and (found or len({kernel[0] for kernel in kernels}) > 1):
            found += (LayerStack(1, tuple(behind)),)
        return found

    def _by_norms(self) -> tuple[LayerStack, ...]:
        many = {norm for norm in self.norms if len(norm) > 1}
        if not many or not self.kernels:
            return ()
        options = {LayerStack(start, n[start : start + k]) for n in many for start in (0, 1) for k in range(1, len(n))}
        found = [s for s in options if all(map(s.fits, many | self.kernels))]
        found = [s for s in found if all(pair.allows_inputs_within(s) for pair in self.pairs if s.fits(pair.weight))]
        longest = {
            start: max((s for s in found if s.start == start), key=lambda s: len(s.sizes), default=None)
            for start in (0, 1)
        }
        return self._by_width([stack for stack in longest.values() if stack is not None], many)

    def _by_width(self, found: list[LayerStack], many: set[Shape]) -> tuple[LayerStack, ...]:
        """The stacks in which the kernels read and write the norms' width."""

        def agrees(stack: LayerStack) -> bool:
            widths = {stack.core(norm)[-1] for norm in many}
            cores = [stack.core(kernel) for kernel in self.kernels]
            return any(core[0] in widths for core in cores) and any(core[-1] in widths for core in cores)

        best = any(map(agrees, found))
        return tuple(stack for stack in found if agrees(stack) == best)

    @cached_property
    def _allowed(self) -> tuple[LayerStack, ...]:
        if not self.pairs:
            return ()
        weight = next(iter(self.pairs)).weight
        options = (UNSTACKED, LayerStack(0, weight[:1]), LayerStack(0, weight[:2]), LayerStack(1, weight[1:2]))
        fitting = [stack for stack in options if all(map(stack.fits, self.kernels))]
        # Heads look like a stack themselves, so they count only where not all biases can be stacked.
        return tuple(s for s in fitting if all(p.allows(s) for p in self.pairs)) or tuple(
            s for s in fitting if all(p.allows_inputs_within(s) for p in self.pairs)
        )

    @property
    def may_be_heads(self) -> bool:
        """Whether an apparent stack may be heads. It may, in attention alone with heads first or half out of sight."""
        return not self.has_others and (self.heads_first_fit(UNSTACKED) or (bool(self.queries) and not self.outs))

    def attention_fits(self, stack: LayerStack) -> bool:
        """Whether a query (d, heads, size) and an output (heads, size, d) agree in heads."""
        queries, outs = (
            {stack.core(shape) for shape in shapes if stack.fits(shape)} for shapes in (self.queries, self.outs)
        )
        return any(len(q) == len(o) == 3 and q[1] == o[0] for q in queries for o in outs)

    def heads_first_fit(self, stack: LayerStack) -> bool:
        """Whether a query (heads, d, size) and an output (heads, size, d) agree."""
        queries, outs = (
            {stack.core(shape) for shape in shapes if stack.fits(shape)} for shapes in (self.queries, self.outs)
        )
        return any(len(q) == 3 and (q[0], q[2], q[1]) in outs for q in queries)


def _meet(kernels: Iterable[Shape], first: int) -> bool:
    return bool({kernel[first] for kernel in kernels} & {kernel[-1] for kernel in kernels} - {1})
