"""A leaf among its neighbors: the scopes around it, its bias, and its shape without stacked axes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.stacks import UNSTACKED, Pair, Scope, Shape, Stack, Stacks, without_ones
from muon_optax._layouts.evidence.vectors import biases_of, is_named_vector, is_norm, weight_beside
from muon_optax._layouts.evidence.windows import has_trailing_window
from muon_optax._layouts.paths import NamedLeaf


class Tree:
    """What all leaves together tell of each."""

    def __init__(self, leaves: Sequence[NamedLeaf], hidden: frozenset[str] = frozenset()) -> None:
        self.leaves = leaves
        self.hidden = hidden  # paths of leaves that can't be seen
        self.shapes: dict[str, Shape] = {leaf.path: leaf.shape for leaf in leaves}
        self.paths = frozenset(self.shapes)
        self.scopes: defaultdict[str, Scope] = defaultdict(Scope)
        self.tables: Counter[Shape] = Counter()  # token embeddings
        self.reversed: Counter[Shape] = Counter()
        self.outputs: Counter[int] = Counter()  # of weights that store them first
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
        query, out = names.QUERY.fullmatch(module), names.ATTENTION_OUT.fullmatch(module)
        attention = out or names.ATTENTION_IN.fullmatch(module) is not None
        inputs = shape[-1] if is_torch(path) and axes == 2 else shape[-2]
        self.reversed[shape[::-1]] += axes == 2
        self.outputs[shape[0]] += is_torch(path) and (axes == 2 or shape[1] > 1)
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
            own = biases_of(path) + self._second_of_pair(path)
            self._biases[path] = next((self.shapes[bias] for bias in own if bias in self.shapes), None)
        return self._biases[path]

    def _second_of_pair(self, path: str) -> list[str]:
        """What stands behind a weight in a list of pairs, as plain JAX writes layers."""
        scope, _, name = path.rpartition("/")
        second, third = f"{scope}/1", f"{scope}/2"
        pair = name == "0" and third not in self.shapes and len(self.shapes.get(second, ())) == 1
        return [second] if pair and self.shapes[second][0] in self.shapes[path] else []

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
        widths = {norm[0] for norm in self.scopes[""].widths if len(norm) == 1}
        votes: Counter[bool] = Counter()
        for leaf in self.leaves:
            role = names.role(module_of(leaf.path)[1])
            sides = [size in widths for size in leaf.shape]
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
                found[family_of(leaf.path)].append((_numbers(leaf.path), leaf.shape))
        return {family: sorted(members) for family, members in found.items()}

    def is_first_of_convolutions(self, leaf: NamedLeaf) -> bool:
        """Whether a later one takes the channels of this one and mixes them in a window."""
        (first, _), *later = self.families[family_of(leaf.path)]
        outputs, inputs, window = (0, 1, slice(2, None)) if is_torch(leaf.path) else (-1, -2, slice(-2))
        return first == _numbers(leaf.path) and any(
            len(shape) == len(leaf.shape) and shape[inputs] == leaf.shape[outputs] > 1 < math.prod(shape[window])
            for _, shape in later
        )

    def has_heads(self, leaf: NamedLeaf) -> bool:
        """Whether a query (heads, d, size) lies beside a norm of length d, which no stack has."""
        scope, module = module_of(leaf.path)
        if len(leaf.shape) != 3 or names.ATTENTION_IN.fullmatch(module) is None:
            return False
        return any(leaf.shape[1:2] in scope.widths for scope in self.chain(scope)[:2])

    def stacks(self, leaf: NamedLeaf) -> Stacks:
        """The stacks that the nearest scope which tells allows; empty where none tells."""
        likely: tuple[Stack, ...] = ()
        told, may_be_heads = Stacks(), False
        for scope in self.chain(leaf.path.rpartition("/")[0]):
            may_be_heads |= scope.may_be_heads
            if not may_be_heads:  # shapes farther out say nothing else
                likely = tuple(stack for stack in scope.likely if stack in likely or not likely) or likely
            told = scope.told
            if told.options:
                break
        # Shapes count less than the norms of a stack around them, and more than vectors outside of it.
        if likely and told.options in ((), (UNSTACKED,)):
            told = Stacks(likely, "shapes")
        fitting = tuple(stack for stack in told.options if stack.fits(leaf.shape))
        return Stacks(fitting or (UNSTACKED,), told.by) if told.options else Stacks()


class Reading(NamedTuple):
    """The letters of one layer's axes, or ``None`` for no matrix, and what told them."""

    letters: str | None
    why: str
    split: Shape | None = None
    weak: bool = False  # another reading fits as well, or a name is all there is against a shape


@dataclass(frozen=True)
class Seen:
    """A leaf as one stack shows it: ``core`` is its shape in one layer, ``bias`` that of its bias."""

    tree: Tree
    leaf: NamedLeaf
    stack: Stack
    told: bool  # whether something tells the stack

    @cached_property
    def core(self) -> Shape:
        """The shape of one layer."""
        return self.stack.core(self.leaf.shape)

    @cached_property
    def bias(self) -> Shape | None:
        """The shape of one layer's bias, where it is stacked as the weight."""
        bias = self.tree.bias_of(self.leaf.path)
        return None if bias is None or not self.stack.fits(bias) else without_ones(self.stack.core(bias))

    @cached_property
    def name(self) -> str:
        """The array's own name."""
        return names.clean(self.leaf.path.rpartition("/")[2])

    @cached_property
    def module(self) -> str:
        """The name of its module, or its own where it has none."""
        return module_of(self.leaf.path)[1]

    @cached_property
    def outputs_first(self) -> bool:
        """Whether it is stored as in PyTorch."""
        return is_torch(self.leaf.path)

    @cached_property
    def scopes(self) -> list[Scope]:
        """The scopes around its module, nearest first."""
        return self.tree.chain(module_of(self.leaf.path)[0])

    def cores(self, shapes: set[Shape]) -> set[Shape]:
        """``shapes`` of one layer, of those that are stacked as the leaf."""
        return {self.stack.core(shape) for shape in shapes if self.stack.fits(shape)}

    @cached_property
    def width(self) -> int | None:
        """The axis of the residual stream, told by the nearest norms with the length of just one axis."""
        for scope in self.scopes:
            lengths = self._lengths(scope.widths)
            axes = [axis for axis, size in enumerate(self.core) if size in lengths]
            if axes:
                return axes[0] if len(axes) == 1 else None
        return None

    def is_width(self, size: int, within: int | None = None) -> bool:
        """Whether a norm of the residual stream has this length, in the nearest scopes only if ``within`` says so."""
        return any(size in self._lengths(scope.widths) for scope in self.scopes[:within])

    @cached_property
    def reads_normalized(self) -> bool:
        """Whether the first axis has the length of any norm near, that of a compressed rank too."""
        return any(self.core[0] in self._lengths(scope.norms) for scope in self.scopes[:3])

    def _lengths(self, norms: set[Shape]) -> set[int]:
        many = self.cores({norm for norm in norms if len(norm) > 1})
        return {norm[0] for norm in norms if len(norm) == 1} | {core[-1] for core in many}


def _is_b(leaf: NamedLeaf) -> bool:
    return leaf.path.rpartition("/")[2] in ("b", "B")


def is_embedding(leaf: NamedLeaf) -> bool:
    """Whether a name says that the leaf is a table of embeddings, or something near one."""
    if names.MAYBE_EMBEDDING.search(leaf.path) is None:
        return False
    parts = [names.clean(part) for part in leaf.path.split("/")]
    if names.EMBEDDING_ARRAY.fullmatch(parts[-1]):
        return True
    near = [names.EMBEDDING.fullmatch(part) is not None for part in parts[-4:]]
    if parts[-1] in names.MODULE_ARRAY and len(parts) > 1:
        # A dense layer or a convolution in an embedder has a name of its own, and a table fewer axes than a window.
        own = near[-2] or names.EMBEDDING_ARRAY.fullmatch(parts[-2]) is not None
        axes, window = len(leaf.shape), names.CONVOLUTION.search(parts[-2]) is not None
        return any(near) and (own if axes == 2 else axes == 3 and not window)
    return any(near)


def module_of(path: str) -> tuple[str, str]:
    """The scope and the name of what a leaf belongs to: its module, or itself if its name says more than "kernel"."""
    scope, _, name = path.rpartition("/")
    if scope and names.clean(name) in names.MODULE_ARRAY:
        scope, _, name = scope.rpartition("/")
    return scope, names.clean(name)


def is_torch(path: str) -> bool:
    """Whether an array is called "weight", which has its outputs first."""
    name = path.rpartition("/")[2]
    return (name.startswith("weight") and name != "weights") or name.endswith("_weight")


def family_of(path: str) -> str:
    """``path`` without its numbers."""
    return re.sub(r"\d+", "#", re.sub(r"_\d+(?=/|$)", "", path))


def _numbers(path: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", path)))


def each_part(path: str) -> Iterator[tuple[str, str]]:
    """Each component of ``path`` with the path of what it names, outermost first."""
    for slash in [*(match.start() for match in re.finditer("/", path)), len(path)]:
        yield path[:slash].rpartition("/")[2], path[:slash]
