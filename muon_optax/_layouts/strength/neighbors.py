"""What the layers of a model take from each other, as far as the arrays near each other show it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from itertools import product

from muon_optax._layouts.decision import Decision
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.strength.read import Read
from muon_optax._layouts.tree.layer_stacks import Shape
from muon_optax._layouts.tree.path_parts import family_of, is_torch, module_of, numbers_in

_LAST = ("head: ", "a side of 1", "vector")  # no matrices, and layers all the same


class Neighbors:
    """All decisions, asked for what stands near a layer."""

    def __init__(
        self, leaves: Sequence[NamedLeaf], decisions: Sequence[Decision], widths: Set[int], *, all_seen: bool
    ) -> None:
        self.widths = widths  # of norms
        self._leaves, self._decisions, self._all_seen = leaves, decisions, all_seen

    @cached_property
    def _matrices(self) -> list[Read]:
        pairs = zip(self._leaves, self._decisions, strict=True)
        return [Read(leaf, decision.layout) for leaf, decision in pairs if decision.layout is not None]

    @cached_property
    def _is_only_one(self) -> bool:
        """Whether there is one matrix, and nothing that no rule knows."""
        return sum(each.layout is not None or each.unknown for each in self._decisions) < 2

    @cached_property
    def _copies(self) -> Counter[tuple[str, Shape]]:
        """How many arrays have the same shape, and the same path but for its numbers."""
        return Counter((family_of(leaf.path), leaf.shape) for leaf in self._leaves)

    @cached_property
    def _given(self) -> set[int]:
        """The sizes that other layers and norms give."""
        return {*self.widths, *(matrix.outputs for matrix in self._matrices)}

    @cached_property
    def _takers(self) -> Mapping[str, Mapping[int, list[str]]]:
        """The matrices and heads of each scope by the sizes that they may take."""
        found: defaultdict[str, defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        inputs = {one.leaf.path: {one.layout.fan_in(one.leaf.shape), one.channels} for one in self._matrices}
        for leaf, decision in zip(self._leaves, self._decisions, strict=True):
            if len(leaf.shape) == 2 and decision.why.startswith(_LAST):
                inputs[leaf.path] = {leaf.shape[is_torch(leaf.path)]}
        for path, sizes in inputs.items():
            for scope, size in product(_scopes(path), sizes):
                found[scope][size].append(path)
        return found

    @cached_property
    def layers(self) -> set[int]:
        """The lengths of axes that count layers, experts or networks."""
        return {one.leaf.shape[one.layout.axes.index("b")] for one in self._matrices if "b" in one.layout.axes}

    def stands_alone(self, read: Read) -> bool:
        """Whether no other layer of its name has its shape, and its outputs are no norm's and no later neighbor's."""
        path, outputs = read.leaf.path, read.outputs
        first = read.channels < outputs and read.channels not in self._given
        if first or outputs in self.widths or self._copies[family_of(path), read.leaf.shape] > 1:
            return False
        if self._is_only_one or not self._all_seen:
            return False
        convolution = len(read.letters) > 2
        if convolution and numbers_in(module_of(path)[0]):
            return False  # one of a block
        for scope in _scopes(path):
            for size, takers in self._takers.get(scope, {}).items():
                # A dense layer may take the channels of all places together.
                fits = size % outputs == 0 if convolution else size == outputs
                if fits and any(_may_follow(taker, path) for taker in takers):
                    return False
        return True


def _scopes(path: str) -> list[str]:
    """The scope of a matrix's module, and the one around a list of modules: "mlp" for "mlp/layers_0/linear/kernel"."""
    scope, module = module_of(path)
    around, _, last = scope.rpartition("/")
    return [scope, around] if module.isdigit() or any(map(str.isdigit, last)) else [scope]


def _may_follow(other: str, path: str) -> bool:
    """Whether ``other`` is another matrix that may come after ``path``: of the same name, one with a higher number."""
    return family_of(other) != family_of(path) or numbers_in(other) > numbers_in(path)
