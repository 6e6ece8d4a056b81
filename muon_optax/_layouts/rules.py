"""The default layouts: what the names, shapes, siblings and types of leaves tell about their axes."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any

import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves

# Names are lower-cased and without a trailing number: "Dense_0" is "dense". HEAD and EMBEDDING are whole components of
# a path; what lies under one is AdamW's, whatever its shape.
HEAD = re.compile(
    r"((lm|mlm|nsp|cls|classification|prediction|output|value|policy|action|reward)_)?head|classifier"
    r"|(to_)?logits(_dense)?|unembed(ding|der)?|embed_out"
)
EMBEDDING = re.compile(
    r"((tok|token|pos|position|positional|word|time|class|label|input)_)?(emb|embed|embedder|embeddings?)"
    r"|posembed_input|embed_(tokens|positions)|w[tp]e"
)
# The last component only: an array that stands in a model or in a dict by itself.
_EMBEDDING_LEAF = re.compile(
    r"(.*_)?(un)?emb(ed(ding|der)?)?s?(_(table|matrix|weights?|tokens|positions))?"
    r"|(cls|mask|register|distill?|pos)_?tokens?|pos(itions?|itional)?(_enc(oding)?s?|_table)?|w[tp]e"
)
_BIAS = re.compile(r"(.*_)?bias(es)?(_.*|\d*)|offset|beta")
_NORM = re.compile(r".*norm(s|alization)?\d*(_.*)?|(ln|rms|rmsn|bn)(_?[a-z]?\d*|_.*)|.*_(ln|rms)")
_NORM_SCALES = frozenset({"scale", "gamma"})
_UNDER_NORMS = frozenset({"weight", "w", "g", "b", "gain"})  # never "kernel": under "norm_mlp" that is a matrix
_OTHER_SCALES = frozenset({"layer_scale", "logit_scale", "a_log"})
_WEIGHTS = frozenset({"kernel", "w", "weight"})
_BIAS_OF = (("kernel", "bias"), ("weight", "bias"), ("w", "b"))
_EXPERTS = re.compile(r"experts?|.*moe.*")
_ATTENTION = re.compile(r".*(attn|attention).*")
_QUERY = ("query", "q_proj", "wq", "q")
_ATTENTION_OUT = ("out", "out_proj", "o_proj", "wo", "o")
_ATTENTION_IN = (*_QUERY, "key", "value", "k_proj", "v_proj", "wk", "wv", "k", "v")
_LARGEST_WINDOW = 31

Shape = tuple[int, ...]


@lru_cache(maxsize=1 << 14)
def _components(path: str) -> tuple[str, ...]:
    return tuple(re.sub(r"_\d+$", "", component).lower() for component in path.split("/"))


def _enclosing(path: str) -> list[str]:
    """The scopes that hold ``path``, nearest first; the last is the whole tree."""
    ends = [slash.start() for slash in re.finditer("/", path)]
    return [path[:end] for end in (*reversed(ends), 0)]


def _module(path: str) -> tuple[str, str]:
    """The scope and the name of what a leaf belongs to: its module, or itself where it is no mere "kernel"."""
    scope, _, name = path.rpartition("/")
    if scope and _components(name)[0] in _WEIGHTS:
        scope, _, name = scope.rpartition("/")
    return scope, _components(name)[0]


def _equinox_kinds(leaf: NamedLeaf) -> set[str]:
    """The names of the Equinox layer that holds ``leaf`` and of its bases."""
    return {base.__name__ for base in type(leaf.owner).__mro__ if base.__module__.startswith("equinox.nn")}


def _is_norm(leaf: NamedLeaf) -> bool:
    names = _components(leaf.path)
    if names[-1] in _NORM_SCALES or _NORM.fullmatch(names[-1]):
        return True
    if any(kind.endswith("Norm") for kind in _equinox_kinds(leaf)):
        return True
    return names[-1] in _UNDER_NORMS and _NORM.fullmatch(names[-2:][0]) is not None


def _weight_beside(path: str, paths: frozenset[str]) -> str | None:
    """The weight whose bias would have this path: "w" for "b", "wq" or "Wq" for "bq"."""
    scope, slash, name = path.rpartition("/")
    weights = [f"{scope}{slash}{letter}{name[1:]}" for letter in "wW" if name[:1] in ("b", "B")]
    return next((weight for weight in weights if weight in paths), None)


def is_bias_or_norm(leaf: NamedLeaf, paths: frozenset[str]) -> bool:
    """Whether ``leaf`` is a bias or a norm's parameter, of any number of axes (stacked ones have two)."""
    name = _components(leaf.path)[-1]
    if _BIAS.fullmatch(name) or name in _OTHER_SCALES or _is_norm(leaf):
        return True
    return _weight_beside(leaf.path, paths) is not None


class _Scope:
    """All that lies below a path, as far as it tells whether it is a stack of layers."""

    def __init__(self) -> None:
        self.leaves: list[NamedLeaf] = []
        self.norm_stacks: set[Shape] = set()
        self.has_convolution = False

    @cached_property
    def _kernels(self) -> list[NamedLeaf]:
        return [leaf for leaf in self.leaves if len(leaf.shape) > 2]

    @cached_property
    def _common_sizes(self) -> Shape:
        sizes = zip(*(leaf.shape for leaf in self._kernels), strict=False)
        return tuple(size[0] for size in takewhile(lambda size: len(set(size)) == 1, sizes))

    def norm_stack(self, shape: Shape) -> int:
        """How many leading axes of ``shape`` norms count as layers."""
        # A norm with a scale for each head, (heads, head_dim), is no stack: the query's kernel begins otherwise.
        agreeing = [
            len(stack)
            for stack in self.norm_stacks
            if shape[: len(stack)] == stack and (not self._kernels or self._common_sizes[: len(stack)] == stack)
        ]
        return max(agreeing, default=0)

    @cached_property
    def looks_stacked(self) -> bool:
        """Without norms: all leaves have one leading size, and the kernels fit each other without it."""
        kernels = self._kernels
        if len(kernels) < 2 or any(len(leaf.shape) < 2 for leaf in self.leaves):
            return False
        if self.has_convolution or len({leaf.shape[0] for leaf in self.leaves}) > 1:
            return False
        if any(len(leaf.shape) == 2 and _components(leaf.path)[-1] in _WEIGHTS for leaf in self.leaves):
            return False
        return bool({leaf.shape[1] for leaf in kernels} & {leaf.shape[-1] for leaf in kernels})


class _Siblings:
    """What the neighbors of a leaf tell: its bias, and how many leading axes its scope is stacked on."""

    def __init__(self, leaves: Sequence[NamedLeaf]) -> None:
        self.shapes = {leaf.path: leaf.shape for leaf in leaves}
        self._paths = frozenset(self.shapes)
        self._modules = {_module(leaf.path): leaf.shape for leaf in leaves if len(leaf.shape) > 2}
        self._scopes: defaultdict[str, _Scope] = defaultdict(_Scope)
        for leaf in leaves:
            is_norm, is_convolution = bool(leaf.shape) and _is_norm(leaf), self.is_convolution(leaf)
            for scope in map(self._scopes.__getitem__, _enclosing(leaf.path)):
                scope.leaves.append(leaf)
                scope.has_convolution |= is_convolution
                if is_norm:
                    scope.norm_stacks.add(leaf.shape[:-1])

    def bias_of(self, path: str) -> Shape | None:
        """The shape of the bias of the weight at ``path``."""
        scope, slash, name = path.rpartition("/")
        for weight, bias in _BIAS_OF:
            if name.lower().startswith(weight):
                return self.shapes.get(f"{scope}{slash}{bias}{name[len(weight) :]}")
        return None

    def is_bias_or_norm(self, leaf: NamedLeaf) -> bool:
        """As the function; but a "b" with as many axes as its "w" is a matrix, as in LoRA's "a" and "b"."""
        weight = _weight_beside(leaf.path, self._paths)
        known = self._paths if weight is None or len(leaf.shape) < len(self.shapes[weight]) else frozenset()
        return is_bias_or_norm(leaf, known)

    def is_convolution(self, leaf: NamedLeaf) -> bool:
        """Whether the module's name or a square window says so."""
        if "conv" in _module(leaf.path)[1]:
            return len(leaf.shape) > 2
        # Only a framework's own kernel: a raw array may have as many experts as layers.
        square = len(leaf.shape) > 3 and leaf.shape[0] == leaf.shape[1] <= _LARGEST_WINDOW
        return square and _components(leaf.path)[-1] in ("kernel", "w") and self.attention_stack(leaf) is None

    def attention_stack(self, leaf: NamedLeaf) -> int | None:
        """In attention of several heads: how many axes lie in front of (d, heads, head_dim); ``None`` elsewhere.

        The query's heads are the output's first axis there. Stacked plain projections, (layers, d, d), don't fit so.
        """
        scope, name = _module(leaf.path)
        if name not in (*_ATTENTION_IN, *_ATTENTION_OUT):
            return None
        query = next((self._modules[scope, name] for name in _QUERY if (scope, name) in self._modules), ())
        out = next((self._modules[scope, name] for name in _ATTENTION_OUT if (scope, name) in self._modules), ())
        if not query or not len(query) == len(out) == len(leaf.shape):
            return None
        stack = len(query) - 3
        return stack if query[:stack] == out[:stack] and query[stack + 1] == out[stack] else None

    def stacked_axes(self, leaf: NamedLeaf) -> int | None:
        """How many leading axes count layers; ``None`` where nothing tells.

        A norm's scale has one axis, in a stack of layers one more, and the nearest norm speaks for the leaf.
        """
        for scope in map(self._scopes.__getitem__, _enclosing(leaf.path)):
            stacked = scope.norm_stack(leaf.shape)
            if stacked:
                return stacked
            if scope.looks_stacked and self.attention_stack(leaf) != 0:
                return 1
            if () in scope.norm_stacks:
                return 0
        return None


def default_layouts(params: Any) -> dict[str, Layout | None]:
    """The layout of every leaf, by the default rules; ``None`` for what goes to AdamW.

    The rules know the kernels of Flax NNX, Flax Linen, Haiku and Equinox, also stacked by ``nn.scan``, ``nnx.vmap``,
    ``hk.layer_stack`` and ``eqx.filter_vmap``, and plain trees. In short: biases, norms, embeddings, heads,
    depthwise convolutions and everything of fewer than two axes get ``None``; a matrix is ``"io"``, or ``"oi"`` if it
    is called ``weight``; an array of three or more axes is told by its type, its bias, its scope's norms and its
    name. The documentation lists the names. What no rule knows gets ``None`` too.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; only paths, shapes, dtypes and module types are read.

    Returns:
        A mapping from every leaf's path to its layout, in the order of the leaves.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}
        >>> {path: str(layout) for path, layout in mo.default_layouts(params).items()}
        {'query/bias': 'None', 'query/kernel': 'ioo'}
    """
    return guess_layouts(named_leaves(params))[0]


def guess_layouts(leaves: Sequence[NamedLeaf]) -> tuple[dict[str, Layout | None], list[NamedLeaf]]:
    """The default layouts, and the leaves of several axes that no rule knows."""
    siblings = _Siblings(leaves)
    layouts: dict[str, Layout | None] = {}
    unknown = []
    for leaf in leaves:
        guess = _guess(leaf, siblings)
        layouts[leaf.path] = None if isinstance(guess, _Unknown) else guess
        if isinstance(guess, _Unknown):
            unknown.append(leaf)
    return layouts, unknown


class _Unknown:
    """No rule applies."""


def _guess(leaf: NamedLeaf, siblings: _Siblings) -> Layout | _Unknown | None:
    names = _components(leaf.path)
    if len(leaf.shape) < 2 or siblings.is_bias_or_norm(leaf):
        return None
    if any(HEAD.fullmatch(name) or EMBEDDING.fullmatch(name) for name in names) or _EMBEDDING_LEAF.fullmatch(names[-1]):
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return _Unknown()
    kinds = _equinox_kinds(leaf)
    known = kinds & {"Embedding", "Linear", "Conv", "ConvTranspose", "GRUCell", "LSTMCell"}
    if known and names[-1].startswith("weight"):  # a subclass may have arrays of its own
        return _equinox_layout(leaf, kinds)
    gates = _fused_gates(leaf, siblings)
    if gates or len(leaf.shape) > 2:
        return gates or _layout_of_many_axes(leaf, siblings)
    if names[-1] not in ("kernel", "w") and siblings.stacked_axes(leaf):
        return None  # a stack of vectors
    return Layout("oi" if names[-1] == "weight" else "io")


def _equinox_layout(leaf: NamedLeaf, kinds: set[str]) -> Layout | None:
    """Equinox stores (out, in), and its layers' types say which layer it is; what is in front of that is a stack."""
    if "Embedding" in kinds:
        return None
    axes = len(leaf.shape)
    for kind, gates in (("GRUCell", 3), ("LSTMCell", 4)):
        if kind in kinds:
            # The output axis holds the gates side by side, each a matrix of its own.
            return Layout("b" * (axes - 2) + "oi", split=(leaf.owner.hidden_size,) * gates)
    if "Linear" in kinds:
        return Layout("b" * (axes - 2) + "oi")
    stacked = axes - 2 - leaf.owner.num_spatial_dims
    depthwise = leaf.owner.groups > 1 and leaf.shape[stacked + 1] == 1
    return None if depthwise else Layout("b" * stacked + "oi" + "i" * leaf.owner.num_spatial_dims)


def _fused_gates(leaf: NamedLeaf, siblings: _Siblings) -> Layout | None:
    """Recurrent cells keep their gates side by side: (in, 3 hidden) or (in, 4 hidden), told by the hidden kernel."""
    stack, outputs, hidden = leaf.shape[:-2], leaf.shape[-1], 0
    for inputs, recurrent in (("dense_i/kernel", "dense_h/kernel"), ("w_i", "w_h")):
        if leaf.path.endswith((inputs, recurrent)):
            scope = leaf.path.removesuffix(inputs).removesuffix(recurrent)
            shape = siblings.shapes.get(scope + recurrent, ())
            if shape[:-2] == stack and shape[-1:] == (outputs,):
                hidden = shape[-2]
    if "/".join(_components(leaf.path)[-3:]).endswith("lstm/linear/w"):
        hidden = outputs // 4  # Haiku's LSTM has one kernel for inputs and hidden state
    if hidden and outputs in (3 * hidden, 4 * hidden):
        return Layout("b" * len(stack) + "io", split=(hidden,) * (outputs // hidden))
    return None


def _layout_of_many_axes(leaf: NamedLeaf, siblings: _Siblings) -> Layout | _Unknown | None:
    """Tells stacks, DenseGeneral kernels and convolutions apart: each clue strikes out the readings it excludes."""
    names, (_, name) = _components(leaf.path), _module(leaf.path)
    axes, bias, heads = len(leaf.shape), siblings.bias_of(leaf.path), siblings.attention_stack(leaf)
    stacked = siblings.stacked_axes(leaf)
    if names[-1] == "w" and "transpose" in name:  # Haiku's transposed convolutions are HWOI
        return Layout("i" * (axes - 2) + "oi")
    if names[-1] == "weight":
        return _layout_of_weight(leaf, name, stacked, bias)
    readings = [(stack, inputs) for stack in range(axes - 1) for inputs in range(1, axes - stack)]
    if bias is not None:
        readings = [(n, i) for n, i in readings if bias == leaf.shape[:n] + leaf.shape[n + i :]]
    if _is_expert(names) and heads is None:
        readings = _prefer(readings, lambda stack, _: stack == axes - 2)
    elif stacked is not None:
        readings = _prefer(readings, lambda stack, _: stack == stacked)
    if heads is not None:
        readings = _prefer(readings, lambda stack, inputs: (stack, inputs) == (heads, 2 - (name in _ATTENTION_IN)))
    elif siblings.is_convolution(leaf):
        readings = _prefer(readings, lambda stack, inputs: stack + inputs == axes - 1 and stack == (stacked or 0))

    if len(readings) != 1:
        return _Unknown()
    ((stack, inputs),) = readings
    # One input channel a group: each channel has a filter of its own, there is no matrix to orthogonalize.
    if heads is None and inputs > 1 and stack + inputs == axes - 1 and leaf.shape[-2] == 1:
        return None
    return Layout("b" * stack + "i" * inputs + "o" * (axes - stack - inputs))


def _is_expert(names: Sequence[str]) -> bool:
    # A component far up may be the name of the whole model, and experts are no attention and no convolutions.
    others = any(_ATTENTION.fullmatch(name) or "conv" in name for name in names[-4:])
    return any(map(_EXPERTS.fullmatch, names[-4:])) and not others


def _layout_of_weight(leaf: NamedLeaf, name: str, stacked: int | None, bias: Shape | None) -> Layout | _Unknown | None:
    """An array called "weight" outside Equinox's layers is stored as there and in PyTorch, outputs first."""
    axes = len(leaf.shape)
    if "transpose" in name:
        return _Unknown()  # inputs first in PyTorch, outputs first in Equinox
    if bias is not None and bias == leaf.shape[: len(bias)] and 0 < len(bias) < axes:
        stacked = len(bias) - 1
    elif stacked != axes - 2 and "conv" not in name:
        return _Unknown()
    inputs = axes - 1 - (stacked or 0)
    if inputs > 1 and leaf.shape[-inputs] == 1:
        return None  # depthwise
    return Layout("b" * (stacked or 0) + "o" + "i" * inputs)


def _prefer(readings: list[tuple[int, int]], clue: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The readings that agree with the clue; all of them if none does."""
    return [reading for reading in readings if clue(*reading)] or readings
