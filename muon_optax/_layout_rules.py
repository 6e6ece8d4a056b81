"""The default layouts: what the names, shapes, siblings and types of leaves tell about their axes."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from muon_optax._layout import Layout
from muon_optax._paths import NamedLeaf, named_leaves

# Whole path components. What lies under a head or an embedding is AdamW's, whatever its shape.
HEADS = frozenset(
    {
        "head",
        "lm_head",
        "mlm_head",
        "nsp_head",
        "cls_head",
        "classifier",
        "classification_head",
        "prediction_head",
        "output_head",
        "value_head",
        "policy_head",
        "action_head",
        "reward_head",
        "logits",
        "logits_dense",
        "to_logits",
        "unembed",
        "unembedding",
    }
)
EMBEDDINGS = frozenset(
    {
        "embed",
        "embedding",
        "embeddings",
        "embedder",
        "tok_embed",
        "token_embed",
        "token_embedder",
        "token_embedding",
        "tok_embeddings",
        "pos_embed",
        "pos_embedding",
        "position_embedding",
        "position_embedder",
        "position_embeddings",
        "posembed_input",
        "word_embeddings",
        "wte",
        "wpe",
        "tok_emb",
        "pos_emb",
        "token_emb",
        "time_embed",
        "class_embed",
        "label_embed",
    }
)
_BIASES = frozenset({"bias", "offset", "beta", "dt_bias"})
_SCALES = frozenset({"scale", "gamma", "layer_scale", "logit_scale", "a_log"})
_NORM = re.compile(r"norm|^(ln|rms|rmsn|bn)(_?[a-z]?\d*|_.*)$|_ln$")
_EMBEDDING_LEAF = re.compile(r"embed|^(cls|mask|register|distill?|pos)_?tokens?$|^(w[tp]e|(tok|pos|token)_emb)$")
_EXPERTS = re.compile(r"^experts?$|moe")
_WEIGHTS = frozenset({"kernel", "w", "weight"})
_BIAS_OF = {"kernel": "bias", "w": "b", "weight": "bias"}
_ATTENTION_IN = frozenset({"query", "key", "value", "q_proj", "k_proj", "v_proj", "wq", "wk", "wv"})
_ATTENTION_OUT = frozenset({"out", "out_proj", "o_proj", "wo"})
_LARGEST_WINDOW = 31

Shape = tuple[int, ...]


def _components(path: str) -> list[str]:
    # "Dense_0" and "classifier_1" are "dense" and "classifier", numbered.
    return [re.sub(r"_\d+$", "", component).lower() for component in path.split("/")]


def _scope(path: str) -> str:
    return path.rpartition("/")[0]


def _is_norm(leaf: NamedLeaf) -> bool:
    names = _components(leaf.path)
    return names[-1] in _SCALES or any(_NORM.search(name) for name in names[-2:])


def is_bias_or_norm(leaf: NamedLeaf, paths: frozenset[str]) -> bool:
    """Whether ``leaf`` is a bias or a norm's parameter, of any number of axes (stacked ones have two)."""
    names = _components(leaf.path)
    if names[-1] in _BIASES or _is_norm(leaf) or "Norm" in type(leaf.owner).__name__:
        return True
    # Haiku's bias is "b", which in research code may as well be a matrix: its weight stands beside it.
    return names[-1] == "b" and f"{_scope(leaf.path)}/w".lstrip("/") in paths


class _Siblings:
    """What the neighbors of a leaf tell: its bias, and how many leading axes its scope is stacked on."""

    def __init__(self, leaves: Sequence[NamedLeaf]) -> None:
        self.shapes = {leaf.path: leaf.shape for leaf in leaves}
        self.paths = frozenset(self.shapes)
        self._norm_stacks: defaultdict[str, set[Shape]] = defaultdict(set)
        self._members: defaultdict[str, list[NamedLeaf]] = defaultdict(list)
        self._layer_stacked: dict[str, bool] = {}
        for leaf in leaves:
            for scope in _enclosing(leaf.path):
                self._members[scope].append(leaf)
                if leaf.shape and _is_norm(leaf):
                    self._norm_stacks[scope].add(leaf.shape[:-1])

    def beside(self, path: str, name: str) -> Shape | None:
        """The shape of the leaf ``name`` in the scope of ``path``."""
        scope = _scope(path)
        return self.shapes.get(f"{scope}/{name}" if scope else name)

    def stacked_axes(self, leaf: NamedLeaf) -> int | None:
        """How many leading axes count layers; ``None`` where nothing tells.

        A norm's scale has one axis, in a stack of layers one more, and the nearest one speaks for the leaf. Without
        norms, a scope whose leaves all have the same leading size, and whose kernels fit each other without it, is
        a stack too.
        """
        enclosing = _enclosing(leaf.path)
        nearest = next((self._norm_stacks[scope] for scope in enclosing if self._norm_stacks.get(scope)), set())
        stack = next(iter(nearest)) if len(nearest) == 1 else None
        if stack and leaf.shape[: len(stack)] == stack:
            return len(stack)
        if any(self._is_stack_of_layers(scope) for scope in enclosing):
            return 1
        return 0 if stack == () else None

    def _is_stack_of_layers(self, scope: str) -> bool:
        if scope not in self._layer_stacked:
            self._layer_stacked[scope] = _look_stacked(self._members[scope])
        return self._layer_stacked[scope]


def _look_stacked(leaves: Sequence[NamedLeaf]) -> bool:
    kernels = [leaf for leaf in leaves if len(leaf.shape) > 2]
    if len(leaves) < 2 or not kernels or any(len(leaf.shape) < 2 for leaf in leaves):
        return False
    if any(len(leaf.shape) == 2 and _components(leaf.path)[-1] in _WEIGHTS for leaf in leaves):
        return False
    if all(_module_name(leaf) in _ATTENTION_IN for leaf in kernels):
        return False
    inputs, outputs = {leaf.shape[1] for leaf in kernels}, {leaf.shape[-1] for leaf in kernels}
    return len({leaf.shape[0] for leaf in leaves}) == 1 and bool(inputs & outputs)


def _enclosing(path: str) -> list[str]:
    """The scopes that hold ``path``, nearest first; the last is the whole tree."""
    scopes = []
    while "/" in path:
        path = _scope(path)
        scopes.append(path)
    return [*scopes, ""]


def _module_name(leaf: NamedLeaf) -> str:
    """The name that says what the leaf is for: its module's, or its own where it is no mere "kernel"."""
    names = _components(leaf.path)
    return names[-2] if names[-1] in _WEIGHTS and len(names) > 1 else names[-1]


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
    if len(leaf.shape) < 2 or is_bias_or_norm(leaf, siblings.paths):
        return None
    if not HEADS.isdisjoint(names) or not EMBEDDINGS.isdisjoint(names) or _EMBEDDING_LEAF.search(names[-1]):
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return _Unknown()
    if leaf.owner is not None:
        return _equinox_layout(leaf, names[-1])
    if len(leaf.shape) > 2:
        return _layout_of_many_axes(leaf, siblings)
    if names[-1] in _WEIGHTS or not siblings.stacked_axes(leaf):
        return _fused_gates(leaf, siblings) or Layout("oi" if names[-1] == "weight" else "io")
    return None  # a stack of vectors


def _equinox_layout(leaf: NamedLeaf, field: str) -> Layout | _Unknown | None:
    """Equinox stores (out, in), and its layers' types say which layer it is; what is in front of that is a stack."""
    kinds = {base.__name__ for base in type(leaf.owner).__mro__}
    if "Embedding" in kinds:
        return None
    for kind, gates in (("GRUCell", 3), ("LSTMCell", 4)):
        if kind in kinds:
            hidden = leaf.owner.hidden_size
            # The output axis holds the gates side by side, each a matrix of its own.
            return Layout("b" * (len(leaf.shape) - 2) + "oi", split=(hidden,) * gates)
    if "Linear" in kinds:
        return Layout("b" * (len(leaf.shape) - 2) + "oi")
    if kinds & {"Conv", "ConvTranspose"} and field == "weight":
        spatial = leaf.owner.num_spatial_dims
        stacked = len(leaf.shape) - 2 - spatial
        depthwise = leaf.owner.groups > 1 and leaf.shape[stacked + 1] == 1
        return None if depthwise else Layout("b" * stacked + "oi" + "i" * spatial)
    return _Unknown()


def _fused_gates(leaf: NamedLeaf, siblings: _Siblings) -> Layout | None:
    """Recurrent cells keep their gates side by side: (in, 3 hidden) or (in, 4 hidden), told by the hidden kernel."""
    for inputs, hidden in (("dense_i/kernel", "dense_h/kernel"), ("w_i", "w_h")):
        if leaf.path.endswith((inputs, hidden)):
            scope = leaf.path.removesuffix(inputs).removesuffix(hidden)
            recurrent = siblings.shapes.get(scope + hidden, (0, 0))
            if recurrent[-1] in (3 * recurrent[0], 4 * recurrent[0]) and leaf.shape[-1] == recurrent[-1]:
                return Layout("io", split=(recurrent[0],) * (recurrent[-1] // recurrent[0]))
    if _components(leaf.path)[-3:] == ["lstm", "linear", "w"] and leaf.shape[1] % 4 == 0:
        return Layout("io", split=(leaf.shape[1] // 4,) * 4)
    return None


def _layout_of_many_axes(leaf: NamedLeaf, siblings: _Siblings) -> Layout | _Unknown | None:
    """Tells stacks, DenseGeneral kernels and convolutions apart: each clue strikes out the readings it excludes."""
    names, name = _components(leaf.path), _module_name(leaf)
    axes = len(leaf.shape)
    if names[-1] == "w" and "transpose" in name:  # Haiku's transposed convolutions are HWOI
        return Layout("i" * (axes - 2) + "oi")
    if names[-1] == "weight":
        return _layout_of_weight(leaf, name, siblings.stacked_axes(leaf))
    readings = [(stack, inputs) for stack in range(axes - 1) for inputs in range(1, axes - stack)]

    bias = siblings.beside(leaf.path, _BIAS_OF.get(names[-1], ""))
    if bias is not None:
        readings = [(n, i) for n, i in readings if bias == leaf.shape[:n] + leaf.shape[n + i :]]
    stacked = siblings.stacked_axes(leaf)
    if any(_EXPERTS.search(component) for component in names):
        readings = _prefer(readings, lambda stack, _: stack == axes - 2)
    elif stacked is not None:
        readings = _prefer(readings, lambda stack, _: stack == stacked)

    one_output = lambda stack, inputs: stack + inputs == axes - 1 and stack == (stacked or 0)  # noqa: E731
    if name in _ATTENTION_IN:
        readings = _prefer(readings, lambda stack, inputs: inputs == 1 and stack == (stacked or 0))
    elif name in _ATTENTION_OUT or "conv" in name:
        readings = _prefer(readings, one_output)
    elif axes - (stacked or 0) >= 4 and leaf.shape[stacked or 0] == leaf.shape[(stacked or 0) + 1] <= _LARGEST_WINDOW:
        readings = _prefer(readings, one_output)  # a square window: an unnamed convolution

    if len(readings) != 1:
        return _Unknown()
    ((stack, inputs),) = readings
    # One input channel a group: each channel has a filter of its own, there is no matrix to orthogonalize.
    if inputs > 1 and stack + inputs == axes - 1 and leaf.shape[-2] == 1:
        return None
    return Layout("b" * stack + "i" * inputs + "o" * (axes - stack - inputs))


def _layout_of_weight(leaf: NamedLeaf, name: str, stacked: int | None) -> Layout | _Unknown | None:
    """An array called "weight" outside Equinox's layers is stored as there and in PyTorch, outputs first."""
    axes = len(leaf.shape)
    if stacked == axes - 2:
        return Layout("b" * (axes - 2) + "oi")
    if "conv" in name and not stacked:
        return None if leaf.shape[1] == 1 else Layout("o" + "i" * (axes - 1))
    return _Unknown()


def _prefer(readings: list[tuple[int, int]], clue: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The readings that agree with the clue; all of them if none does."""
    return [reading for reading in readings if clue(*reading)] or readings
