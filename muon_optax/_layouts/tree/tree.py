"""All leaves together, with their shapes by path, their biases and norms, and the scopes they lie in."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.layer_stacks import UNSTACKED, LayerStack, LayerStacks, Shape
from muon_optax._layouts.tree.path_parts import family_of, is_embedding, is_torch, module_of, numbers_in
from muon_optax._layouts.tree.scope import Pair, Scope
from muon_optax._layouts.tree.vectors import biases_of, is_named_vector, is_norm, weight_beside
from muon_optax._layouts.tree.windows import has_trailing_window


class Tree:
    """All leaves of a model, and what they show about each other."""

    def __init__(self, leaves: Sequence[NamedLeaf], hidden: frozenset[str] = frozenset()) -> None:
        self.leaves = leaves
        self.hidden = hidden  # paths of leaves that can't be seen
        self.shapes: dict[str, Shape] = {leaf.path: leaf.shape for leaf in leaves}
        self.paths = frozenset(self.shapes)
        self.scopes: defaultdict[str, Scope] = defaultdict(Scope)
        self.tables: Counter[Shape] = Counter()  # token embeddings
        self.reversed: Counter[Shape] = Counter()
        self.outputs: set[int] = set()  # of weights that store them first
        self._biases: dict[str, Shape | None] = {}
        self._chains: dict[str, list[Scope]] = {}
        self.norms = {leaf.path for leaf in leaves if is_norm(leaf, self.shapes)}
        self.vectors = {leaf.path for leaf in leaves if leaf.path in self.norms or self._is_vector(leaf)}
        for leaf in leaves:
            self._add(leaf)

    def _is_vector(self, leaf: NamedLeaf) -> bool:
        """As for decay; but a "b" with as many axes as its "w" is a matrix, as in LoRA's "a" and "b"."""
        if is_named_vector(leaf, self.shapes):
            return True
        weight = weight_beside(leaf.path, self.paths)
        if weight is not None:
            return len(leaf.shape) < len(self.shapes[weight])
        return _is_b(leaf) and self._is_bias_alone(leaf)

    def _is_bias_alone(self, leaf: NamedLeaf) -> bool:
        """Whether a "b" is a bias whose weight is out of sight: stacked biases have two axes."""
        if weight_beside(leaf.path, self.hidden) is not None:
            return True
        scope, slash, name = leaf.path.rpartition("/")
        other = f"{scope}{slash}{'a' if name == 'b' else 'A'}"
        return self._only_biases and other not in self.paths and other not in self.hidden

    @cached_property
    def _only_biases(self) -> bool:
        return all(_is_b(leaf) for leaf in self.leaves if len(leaf.shape) > 1)

    def chain(self, scope: str) -> list[Scope]:
        """The scopes from ``scope`` outward; the last is the whole tree."""
        if scope not in self._chains:
            outer = self.chain(scope.rpartition("/")[0]) if scope else []
            self._chains[scope] = [self.scopes[scope], *outer]
        return self._chains[scope]

    def _add(self, leaf: NamedLeaf) -> None:
        path, shape = leaf.path, leaf.shape
        chain, axes = self.chain(path.rpartition("/")[0]), len(shape)
        if path in self.vectors:
            if axes and path in self.norms:
                # Haiku's batch normalization has (1, 1, 1, channels).
                shape = shape[-1:] if axes > 2 and math.prod(shape[:-1]) == 1 else shape
                inner = names.INNER_NORM.fullmatch(names.clean(path.split("/")[-2:][0])) is not None
                for scope in chain:
                    scope.norms.add(shape)
                    if not inner:
                        scope.widths.add(shape)
            self._add_to(chain, leaf.shape)
            return
        if axes < 2 or self.is_table(leaf):
            if axes == 2:
                self.tables[shape] += "pos" not in path and "type" not in path
            return
        scope_path, module = module_of(path)
        bias = self.bias_of(path)
        pair = None if bias is None or len(bias) >= axes else Pair(shape, bias, is_torch(path))
        query, out = roles.is_query(module), roles.writes_attention(module)
        attention = out or roles.reads_attention(module)
        inputs = shape[1] if is_torch(path) and axes == 2 else shape[-2]
        self.reversed[shape[::-1]] += axes == 2
        if is_torch(path) and (axes == 2 or shape[1] > 1):
            self.outputs.add(shape[0])
        unnamed = names.is_weight(names.clean(path.rpartition("/")[2])) is not True
        flat = axes == 2 and path.rpartition("/")[2] in names.MODULE_ARRAY
        convolution = axes > 2 and (names.CONVOLUTION.search(module) is not None or has_trailing_window(shape))
        for scope in chain:
            scope.weights.add(shape)
            scope.inputs[inputs] = scope.inputs.get(inputs, 0) + 1
            scope.has_flat_weight |= flat
            scope.has_convolution |= convolution
            if axes > 2:
                scope.has_others |= not attention
                scope.kernels.add(shape)
                scope.has_unnamed |= unnamed
                scope.has_outputs_first |= is_torch(path)
            if pair is not None:
                scope.pairs.add(pair)
        # Attention is judged where its query and its output meet.
        for scope in self.chain(scope_path)[:2] if query or out else ():
            (scope.queries if query else scope.outs).add(shape)
        self._add_to(chain, shape)

    def _add_to(self, chain: list[Scope], shape: Shape) -> None:
        if shape:
            for scope in chain:
                scope.shapes.add(shape)

    def is_table(self, leaf: NamedLeaf) -> bool:
        """Whether a name says that the leaf is a table of embeddings, and no bias beside it says that it is a layer."""
        return is_embedding(leaf) and (len(leaf.shape) != 2 or self.bias_of(leaf.path) is None)

    def bias_of(self, path: str) -> Shape | None:
        """The shape of the bias of the weight at ``path``."""
        if path not in self._biases:
            named = next((self.shapes[bias] for bias in biases_of(path) if bias in self.shapes), None)
            self._biases[path] = named or self._second_of_pair(path)
        return self._biases[path]

    def _second_of_pair(self, path: str) -> Shape | None:
        """The bias behind a weight in a list of pairs, as plain JAX writes layers; stax keeps it as (1, 1, 1, out)."""
        scope, _, name = path.rpartition("/")
        second = self.shapes.get(f"{scope}/1", ())
        if name != "0" or not second or f"{scope}/2" in self.shapes or math.prod(second[:-1]) != 1:
            return None
        return second[-1:] if second[-1] in self.shapes[path] else None

    @cached_property
    def of_layers(self) -> bool:
        """Whether a framework made the tree, which gives weights their names."""
        endings = {path.rpartition("/")[2] for path in self.paths if "/" in path}
        return bool(endings & names.MODULE_ARRAY)

    @cached_property
    def is_torch(self) -> bool:
        """Whether PyTorch's names are all there are: it stores outputs first, in experts too."""
        endings = {path.rpartition("/")[2] for path in self.paths}
        return "weight" in endings and endings.isdisjoint({"kernel", "w"})

    @cached_property
    def stores_inputs_first(self) -> bool:
        """Whether weights of PyTorch's name have their inputs first, as older Haliax does: by roles and widths."""
        norms = self.scopes[""].widths
        votes: Counter[bool] = Counter()
        for leaf in (leaf for leaf in self.leaves if len(leaf.shape) > 1):
            role = roles.side_of(module_of(leaf.path)[1])
            *stack, _, _ = leaf.shape
            sides = [(*stack, size) in norms for size in leaf.shape[-2:]]
            if role is not None and sides in ([True, False], [False, True]) and is_torch(leaf.path):
                votes[sides[0] == (role == "reads")] += 1
        return votes[True] > votes[False]

    @cached_property
    def is_flat_list(self) -> bool:
        """Whether nothing is named, and not all are matrices."""
        return all(path.isdigit() for path in self.paths) and any(len(shape) != 2 for shape in self.shapes.values())

    @cached_property
    def families(self) -> dict[str, list[tuple[list[int], Shape]]]:
        """The kernels whose paths differ in numbers only, in their order."""
        found: defaultdict[str, list[tuple[list[int], Shape]]] = defaultdict(list)
        for leaf in self.leaves:
            if len(leaf.shape) > 2 and leaf.path not in self.vectors:
                found[family_of(leaf.path)].append((numbers_in(leaf.path), leaf.shape))
        return {family: sorted(members) for family, members in found.items()}

    @cached_property
    def chains(self) -> dict[str, str]:
        """``"io"`` or ``"oi"`` for each family of numbered weights in which each takes the one before's outputs."""
        found: defaultdict[str, list[tuple[list[int], Shape]]] = defaultdict(list)
        for leaf in self.leaves:
            if len(leaf.shape) == 2 and leaf.path not in self.vectors and not self.is_table(leaf):
                found[family_of(leaf.path)].append((numbers_in(leaf.path), leaf.shape))
        read = {family: _read_in_turn(sorted(members)) for family, members in found.items()}
        return {family: letters for family, letters in read.items() if letters is not None}

    def is_first_of_convolutions(self, leaf: NamedLeaf, *, in_block: bool = False) -> bool:
        """Whether a later one, of the same block or of all, takes the channels of this one and mixes them."""
        own = numbers_in(leaf.path)
        members = self.families[family_of(leaf.path)]
        (first, _), *later = [one for one in members if not in_block or one[0][:-1] == own[:-1]]
        outputs, inputs, window = (0, 1, slice(2, None)) if is_torch(leaf.path) else (-1, -2, slice(-2))
        return first == own and any(
            len(shape) == len(leaf.shape) and shape[inputs] == leaf.shape[outputs] > 1 < math.prod(shape[window])
            for _, shape in later
        )

    def is_repeated_kernel(self, leaf: NamedLeaf) -> bool:
        """Whether a kernel of this shape lies at the same place of other blocks; a first layer is one of its kind."""
        own = numbers_in(leaf.path)
        members = self.families.get(family_of(leaf.path), [])
        return any(shape == leaf.shape and numbers != own and numbers[-1:] == own[-1:] for numbers, shape in members)

    def has_heads(self, leaf: NamedLeaf) -> bool:
        """Whether a query (heads, d, size) lies beside a norm of length d, which no stack has."""
        scope, module = module_of(leaf.path)
        if len(leaf.shape) != 3 or not roles.reads_attention(module):
            return False
        return any(leaf.shape[1:2] in scope.widths for scope in self.chain(scope)[:2])

    def stacks(self, leaf: NamedLeaf) -> LayerStacks:
        """The stacks that the nearest scope with evidence allows; empty if no scope has any."""
        likely: tuple[LayerStack, ...] = ()
        told, may_be_heads = LayerStacks(), False
        for scope in self.chain(leaf.path.rpartition("/")[0]):
            may_be_heads |= scope.may_be_heads
            if not may_be_heads:  # shapes farther out say nothing else
                likely = tuple(stack for stack in scope.likely if stack in likely or not likely) or likely
            told = _narrowed(told, scope.told)
            if len(told.options) == 1:
                break
        # A stacked norm in an outer scope overrules shapes; an unstacked one does not.
        if likely and told.options in ((), (UNSTACKED,)):
            told = LayerStacks(likely, "shapes")
        fitting = tuple(stack for stack in told.options if stack.fits(leaf.shape))
        return LayerStacks(fitting or (UNSTACKED,), told.by) if told.options else LayerStacks()


def _read_in_turn(members: list[tuple[list[int], Shape]]) -> str | None:
    """Whether each next layer takes the last axis of the one before, or the first; ``None`` for both or neither."""
    turns = [(one, other) for (at, one), (then, other) in pairwise(members) if at[:-1] == then[:-1]]
    inputs_first = all(one[1] == other[0] for one, other in turns)
    outputs_first = all(one[0] == other[1] for one, other in turns)
    return None if not turns or inputs_first == outputs_first else "io" if inputs_first else "oi"


def _narrowed(told: LayerStacks, farther: LayerStacks) -> LayerStacks:
    """The stacks that the nearest scope with evidence allows; of several, those that a scope around it allows too."""
    both = tuple(stack for stack in told.options if stack in farther.options)
    return LayerStacks(both, told.by) if both else farther if not told.options else told


def _is_b(leaf: NamedLeaf) -> bool:
    return leaf.path.rpartition("/")[2] in ("b", "B")
