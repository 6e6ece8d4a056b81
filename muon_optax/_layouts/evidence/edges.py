"""The edge of a model: outputs that nothing in it takes belong to a head or to a table, whatever their names."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from posixpath import commonprefix

from muon_optax._layouts.decision import Decision
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.layer_stacks import Shape
from muon_optax._layouts.tree.path_parts import family_of, is_torch, module_of
from muon_optax._layouts.tree.tree import Tree
from muon_optax._layouts.tree.windows import LARGEST_WINDOW, has_trailing_window

# Sizes that differ by such a factor are parts of one another: fused query, key and value, or a hidden layer's halves.
FACTORS = range(2, 9)
LEAST_TABLES = 4  # attention has fewer projections of one width
LEAST_CHANNELS = 8  # that show a flat layer behind a convolution; colors and latents are fewer
_LAST_NUMBER = re.compile(r"_(\d+)$")
_NUMBER = re.compile(r"(?:^|[_/])\d+(?:/|$)")
FEW = 4  # networks side by side, such as critics; blocks are more


class Edges:
    """The sides of all matrices and norms of a model, and how often each occurs."""

    def __init__(self, tree: Tree, leaves: Sequence[NamedLeaf], decisions: Sequence[Decision]) -> None:
        self.tree = tree
        self.shared = _shared_stack(leaves, decisions)  # axes in front that count the same in all leaves
        self.sides: Counter[int] = Counter()  # leaves that have the size as a side
        self.outputs: Counter[int] = Counter()
        self.channels: set[int] = set()  # of convolutions
        self.widths: set[int] = set()  # of norms
        self.heights: defaultdict[tuple[str, int], set[int]] = defaultdict(set)  # of what may be tables side by side
        self.inputs: set[int] = set()
        self.read_by_heads: set[int] = set()
        self.matrices = 0
        # By shape, in either orientation: the number of inputs, and how many leaves have that number.
        self.alike: defaultdict[Shape, Counter[int]] = defaultdict(Counter)
        self.modules: defaultdict[str, set[str]] = defaultdict(set)  # scopes of modules that differ in numbers only
        self.numbers: defaultdict[tuple[str, str], set[int]] = defaultdict(set)  # of modules in one scope
        for leaf, decision in zip(leaves, decisions, strict=True):
            if leaf.path in tree.vectors:
                lengths = leaf.shape[-1:] if leaf.path in tree.norms else ()
                self.sides.update(lengths)
                self.outputs.update(lengths)
                self.widths.update(lengths)
            elif len(self._one(leaf)) > 1:
                self._add(leaf, decision)

    def _add(self, leaf: NamedLeaf, decision: Decision) -> None:
        shape, layout, head = self._one(leaf), decision.layout, decision.why.startswith("head")
        fan_in, fan_out = (0, shape[-1]) if layout is None else (layout.fan_in(leaf.shape), layout.fan_out(leaf.shape))
        letters = "" if layout is None else layout.axes[self.shared :]
        if head and len(shape) == 2:
            self.read_by_heads.add(shape[1] if is_torch(leaf.path) else shape[0])
        self.sides.update(_sides(shape, letters, fan_in, fan_out))
        self.inputs.add(fan_in)
        self.outputs.update({size for size, letter in zip(shape, letters, strict=False) if letter == "o"} | {fan_out})
        if layout is not None and len(shape) > 2 and names.CONVOLUTION.search(module_of(leaf.path)[1]):
            self.channels.add(fan_out)
        self.matrices += 1
        scope, module = module_of(leaf.path)
        self.modules[f"{family_of(scope)}/{module}"].add(scope)
        self.numbers[scope, module].add(_number(leaf))
        if len(shape) == 2 and self.may_be_table(leaf):
            self.heights[scope, shape[1]].add(shape[0])
        if len(shape) == 2:
            # A table reads nothing, since its rows are looked up.
            self.alike[min(shape), max(shape)][fan_in] += 1

    def _one(self, leaf: NamedLeaf) -> Shape:
        """The leaf's shape in one of the networks that lie in the same array."""
        return leaf.shape[self.shared :]

    def takers(self, leaf: NamedLeaf, inputs: int, size: int) -> int:
        """Counts other leaves with ``size`` as a side, without tables and parallel layers of the leaf's own shape."""
        alike = self._alike(leaf)
        return self.sides[size] - alike.total() + alike[size] - (inputs == size)

    def is_taken_back(self, leaf: NamedLeaf, inputs: int, size: int) -> bool:
        """Whether only layers of the turned shape take ``size``: an encoder of what comes out, or the second of two."""
        alike = self._alike(leaf)
        return inputs != size and self.sides[size] == alike.total()

    def _alike(self, leaf: NamedLeaf) -> Counter[int]:
        shape = self._one(leaf)
        return self.alike[min(shape), max(shape)]

    def repetitions(self, leaf: NamedLeaf) -> int:
        """Counts the modules of this name in scopes that differ in their numbers only."""
        scope, module = module_of(leaf.path)
        family = family_of(scope)
        # In lists of lists every layer would be one of a family.
        return len(self.modules[f"{family}/{module}"]) if any(map(str.isalpha, family)) else 1

    def is_repeated(self, leaf: NamedLeaf) -> bool:
        """Whether the module is one of repeated blocks."""
        return self.repetitions(leaf) > 1

    @cached_property
    def around_blocks(self) -> set[str]:
        """The scopes that hold repeated blocks."""
        repeated = (sorted(scopes) for scopes in self.modules.values() if len(scopes) > 1)
        return {commonprefix([scopes[0], scopes[-1]]).rpartition("/")[0] for scopes in repeated}

    def is_last_in_turn(self, leaf: NamedLeaf) -> bool:
        """Whether a layer beside repeated blocks has the last number of its name: Linen counts in order of calls."""
        scope, module = module_of(leaf.path)
        numbers = self.numbers[scope, module]
        return scope in self.around_blocks and min(numbers) < max(numbers) == _number(leaf)

    def is_multiple(self, size: int) -> bool:
        """Whether ``size`` is a small multiple of another side, or a small part of one."""
        return any(
            (size % factor == 0 and self.sides[size // factor]) or self.sides[size * factor] for factor in FACTORS
        )

    def is_produced(self, size: int, outputs: int) -> bool:
        """Whether another leaf's output or a norm has ``size``, or a convolution's channels do once they are flat."""
        if self.outputs[size] - (size == outputs) > 0:
            return True
        return any(size % channels == 0 for channels in self.channels)

    def is_no_head(self, leaf: NamedLeaf) -> bool:
        """Whether a leaf that is called a head feeds the model: a norm, another head, or repeated blocks."""
        outputs, inputs = _sides_by_name(leaf)
        scope, module = module_of(leaf.path)
        if self.is_repeated(leaf) and names.HEAD.fullmatch(module):
            return self.sides[outputs] > (inputs == outputs) + 1 or self.is_multiple(outputs)
        if len(leaf.shape) > 2 and outputs in self.read_by_heads:
            return True
        nested = any(names.HEAD.fullmatch(names.clean(part)) for part in scope.split("/"))
        return len(leaf.shape) == 2 and outputs in self.widths and not nested

    def may_be_inside(self, leaf: NamedLeaf) -> bool:
        """Whether a leaf that is called a head has heads or layers as axes, or outputs that another layer may take."""
        shape = leaf.shape
        if len(shape) == 2:
            outputs, inputs = _sides_by_name(leaf)
            return outputs >= LEAST_CHANNELS and self.takers(leaf, inputs, outputs) > 0
        window = has_trailing_window(shape) or (len(shape) > 3 and shape[0] == shape[1] <= LARGEST_WINDOW)
        return not window and names.CONVOLUTION.search(module_of(leaf.path)[1]) is None

    def is_one_of_tables(self, leaf: NamedLeaf) -> bool:
        """Whether modules side by side look up rows of one width: PyTorch's weights of many heights, without a bias."""
        scope, _ = module_of(leaf.path)
        return self.may_be_table(leaf) and len(self.heights[scope, leaf.shape[1]]) >= LEAST_TABLES

    def may_be_table(self, leaf: NamedLeaf) -> bool:
        """Whether PyTorch's name, no bias beside it, and no layer's name allow a table of embeddings."""
        _, module = module_of(leaf.path)
        return is_torch(leaf.path) and self.tree.bias_of(leaf.path) is None and not names.is_layer(module)

    def may_read_one_hot(self, leaf: NamedLeaf, inputs: int, outputs: int) -> bool:
        """Whether a layer of an embedding takes only what a layer of the turned shape gives: tokens, and their head."""
        scope, module = module_of(leaf.path)
        named = any(names.EMBEDDING_WORD.search(names.clean(part)) for part in (*scope.split("/"), module))
        alike = self._alike(leaf)
        return named and inputs > outputs and alike[outputs] > 0 and self.sides[inputs] == alike.total()

    def judged(self, leaf: NamedLeaf, decision: Decision) -> Decision:
        """The decision on a matrix, or another one if it lies at the edge of the model."""
        layout = decision.layout
        paired = decision.why == "low rank" or (layout is not None and layout.split)
        if layout is None or paired or self.matrices < 2:
            return decision
        if len(self._one(leaf)) != 2:
            return self._judged_convolution(leaf, decision, layout)
        if self.is_one_of_tables(leaf):
            return Decision(None, "one of many tables", "weak")
        inputs, outputs = layout.fan_in(leaf.shape), layout.fan_out(leaf.shape)
        if self.may_read_one_hot(leaf, inputs, outputs):
            return decision._replace(strength="weak")
        if self.takers(leaf, inputs, outputs) > 0:
            return self._judged_taken(leaf, decision, inputs, outputs)
        last = self._judged_last(leaf, decision, inputs, outputs)
        # An axis that all leaves share counts networks, shards or layers: of layers the last gives its outputs to none.
        return decision._replace(strength="weak") if self.shared and last.layout is None else last

    def _judged_taken(self, leaf: NamedLeaf, decision: Decision, inputs: int, outputs: int) -> Decision:
        """A matrix whose outputs are taken; by nothing but a turned one outside of all blocks, it may be a decoder."""
        scope, module = module_of(leaf.path)
        # A few outputs are another side's size by chance.
        if _are_few(outputs, module) and decision.why != "layer type" and self.repetitions(leaf) <= FEW:
            return decision._replace(strength="weak")
        if inputs == outputs and self.is_last_in_turn(leaf):
            return decision._replace(strength="weak")  # a head may have as many outputs as the model is wide
        # In lists of lists every scope has a number.
        block = self.is_repeated(leaf) or (_NUMBER.search(scope) and any(map(str.isalpha, scope)))
        inside = roles.side_of(module) == "reads" or roles.role_of(module) == "down"  # "out" may be the model's
        if block or inside or not self.is_taken_back(leaf, inputs, outputs):
            return decision
        return decision._replace(strength="weak")

    def _judged_last(self, leaf: NamedLeaf, decision: Decision, inputs: int, outputs: int) -> Decision:
        """A matrix whose outputs nothing takes: a head or a table, unless its name or its size says otherwise."""
        _, module = module_of(leaf.path)
        fused = roles.role_of(module) in ("fused", *roles.HALVES)
        multiple, produced = self.is_multiple(outputs), self.is_produced(inputs, outputs)
        if self.is_repeated(leaf):
            few = _are_few(outputs, module) and self.repetitions(leaf) <= FEW
            head = not fused and (few or not multiple)
            return decision._replace(strength="weak") if head else decision
        if fused and multiple:
            return decision
        table = self.may_be_table(leaf) and self.sides[inputs] > 1
        # A layer that reads the residual stream is not the last, and the layer that takes its outputs may be hidden.
        kept = fused or roles.side_of(module) == "reads" or bool(self.tree.hidden)
        if not kept and (table or (produced and not multiple)):
            return Decision(None, "edge: nothing takes its outputs", "weak")
        return decision._replace(why=f"{decision.why}; nothing takes its outputs", strength="weak")

    def _judged_convolution(self, leaf: NamedLeaf, decision: Decision, layout: Layout) -> Decision:
        """A last convolution stays with Muon, marked."""
        outputs = layout.fan_out(leaf.shape)
        one = layout.axes.count("o") == 1 and "b" not in layout.axes and roles.side_of(module_of(leaf.path)[1]) is None
        inputs = leaf.shape[layout.axes.rindex("i") if layout.axes[-1] == "o" else 1]
        flat = outputs >= LEAST_CHANNELS and any(size % outputs == 0 for size in self.inputs if size > outputs)
        last = self.sides[outputs] <= 1 and self.outputs[inputs] and not flat and not self.is_repeated(leaf)
        if one and last:
            return decision._replace(why=f"{decision.why}; nothing takes its outputs", strength="weak")
        return decision


def _shared_stack(leaves: Sequence[NamedLeaf], decisions: Sequence[Decision]) -> int:
    """One if all leaves share an axis in front that counts networks or shards, and none if it may count layers.

    Layers take what the layer before gives, and are not numbered besides.
    """
    sizes = {leaf.shape[:1] for leaf in leaves}
    found = [(leaf, each.layout) for leaf, each in zip(leaves, decisions, strict=True) if each.layout is not None]
    if len(sizes) != 1 or sizes & {(), (1,)} or any(layout.axes[0] != "b" for _, layout in found):
        return 0
    scopes: defaultdict[str, set[str]] = defaultdict(set)
    for leaf, _ in found:
        scope, module = module_of(leaf.path)
        scopes[f"{family_of(scope)}/{module}"].add(scope)
    given = {leaf.shape[-1] for leaf, each in zip(leaves, decisions, strict=True) if each.layout is None}
    given |= {layout.fan_out(leaf.shape) for leaf, layout in found}
    first = any(layout.fan_in(leaf.shape) not in given for leaf, layout in found if len(leaf.shape) == 3)
    return int(first or any(len(alike) > 1 for alike in scopes.values()))


def _are_few(outputs: int, module: str) -> bool:
    """Whether a layer has so few outputs that another side has their number by chance. A router has few anyway."""
    return outputs < LEAST_CHANNELS and roles.role_of(module) != "router"


def _number(leaf: NamedLeaf) -> int:
    """The number behind the name of a leaf's module: 2 of "Dense_2/kernel"."""
    match = _LAST_NUMBER.search(leaf.path.rpartition("/")[0])
    return int(match[1]) if match else 0


def _sides_by_name(leaf: NamedLeaf) -> tuple[int, int]:
    """Outputs and inputs, as frameworks store an array of this name."""
    return (leaf.shape[0], leaf.shape[1]) if is_torch(leaf.path) else (leaf.shape[-1], leaf.shape[-2])


def _sides(shape: Shape, letters: str, fan_in: int, fan_out: int) -> set[int]:
    """The sizes that other layers may give or take: of a convolution its channels, not its window or colors."""
    if len(shape) < 4 or (letters and (letters.count("o") != 1 or "b" in letters)):
        return {*shape, fan_in, fan_out} - {1}  # every size is a multiple of one
    first = "o" in letters[:2]
    channels = shape if not letters else shape[:2] if first else shape[-2:]
    return {size for size in channels if size >= LEAST_CHANNELS}
