"""The states of other Muons, as states of this library's: a run goes on where it was."""

from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.paths import NamedLeaf, named_leaves, show
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.momenta.scheduled_trace import ScheduledTraceState

Entry = Mapping[str, Any]  # what another optimizer keeps of one parameter, under PyTorch's names
_KEPT = (optax.TraceState, ScheduledTraceState, optax.EmaState, optax.ScaleByAdamState)
_ARRAYS = ("momentum_buffer", "exp_avg", "exp_avg_sq")
_COUNTERS = ("count", "step")


def from_torch_muon(state: Mapping[str, Entry], fresh: Any, *, momentum: float = 0.95, step: int = 0) -> Any:
    """The state with which :func:`muon_optax.muon` continues a run of PyTorch's Muon or of Keller Jordan's.

    Both keep an average of the gradients, ``1 - momentum`` times what ``optax.trace`` keeps; the next update is the
    same to rounding. Arrays are taken as they are: transpose those of kernels that your model stores the other way.

    Args:
        state: From each parameter's path, as :func:`muon_optax.assign_layouts` names it, to what PyTorch keeps of it in
            ``optimizer.state_dict()["state"]``: ``{"momentum_buffer": array}`` under Muon, and ``{"exp_avg": array,
            "exp_avg_sq": array}`` under AdamW.
        fresh: ``optimizer.init(params)``, or :func:`muon_optax.init_sharded` on a mesh. Momentum may be kept by a
            number, a schedule, :func:`muon_optax.nesterov_ema` or ``optax.ema``.
        momentum: The run's, in [0, 1).
        step: How many steps the run has taken: schedules and AdamW's bias correction go on from there.

    Returns:
        A state with the structure, dtypes and shardings of ``fresh``. What no other optimizer keeps, such as NorMuon's
        second moments, stays as it is there.

    Raises:
        ValueError: If an array is missing, left over, or of another shape than the parameter; its path is named.

    References:
        Keller Jordan, "Muon", https://github.com/KellerJordan/Muon, 2024.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> fresh = mo.muon(3e-4).init({"up": jnp.ones((2, 2))})
        >>> state = mo.from_torch_muon({"up": {"momentum_buffer": 0.5 * jnp.eye(2)}}, fresh, momentum=0.5)
        >>> state.inner_states["muon"].inner_state[0].trace["up"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_number("momentum", momentum, "use the run's, a number in [0, 1) such as 0.95", 0.0, 1.0)
    used: set[tuple[str, str]] = set()

    def take(tree: Any, name: str, factor: float = 1.0) -> Any:
        leaves = named_leaves(tree)
        used.update((leaf.path, name) for leaf in leaves)
        arrays = [_array(state, leaf, name, factor) for leaf in leaves]
        return jax.tree.unflatten(jax.tree.structure(tree), arrays)

    def fill(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(mu=take(node.mu, "exp_avg"), nu=take(node.nu, "exp_avg_sq"))
        if isinstance(node, optax.EmaState):
            return node._replace(ema=take(node.ema, "momentum_buffer"))
        if isinstance(node, optax.TraceState | ScheduledTraceState):
            # Heavy ball adds gradients where an average takes a share of each.
            return node._replace(trace=take(node.trace, "momentum_buffer", 1 / (1 - momentum)))
        return node

    filled = jax.tree.map(fill, _at_step(fresh, step), is_leaf=lambda node: isinstance(node, _KEPT))
    _refuse_left_over(state, used)
    return filled


def from_optax_contrib_muon(state: Any, fresh: Any, *, momentum: float = 0.95) -> Any:
    """The state with which :func:`muon_optax.muon` continues a run of ``optax.contrib.muon``.

    Optax keeps an average with a bias correction. With ``nesterov=False`` on both sides the next update of a matrix is
    the same to rounding. With ``nesterov=True`` it is with ``momentum=muon_optax.nesterov_ema(0.95, debias=True)``;
    plain momentum differs by the bias correction, a few percent after 10 steps and 0.01% after 100. Scale, weight
    decay, products and AdamW's coefficients are arguments, not state.

    Args:
        state: Of ``optax.contrib.muon`` or ``optax.contrib.scale_by_muon``, also inside a chain.
        fresh: As in :func:`from_torch_muon`.
        momentum: The run's ``beta``.

    Returns:
        As :func:`from_torch_muon`.

    Raises:
        ValueError: If ``state`` holds no Muon, or the two libraries train a parameter differently: its path is named.
            Optax takes every array of two axes for a matrix, embeddings too, and no other.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo, optax
        >>> params = {"up": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> before = optax.contrib.muon(3e-4)
        >>> updates, state = before.update(params, before.init(params), params)
        >>> optimizer = mo.muon(3e-4, momentum=mo.nesterov_ema(0.95, debias=True), scale="keller")
        >>> state = mo.from_optax_contrib_muon(state, optimizer.init(params))
        >>> updates, state = optimizer.update(params, state, params)
    """
    muons, adams = _nodes(state, optax.contrib.MuonState), _nodes(state, optax.ScaleByAdamState)
    if not muons:
        raise ValueError(
            f"There is no optax.contrib.MuonState in this {type(state).__name__}: give the state of "
            "optax.contrib.muon, restored into the structure of its `init`."
        )
    entries: dict[str, dict[str, Any]] = {}

    def put(tree: Any, name: str) -> None:
        for leaf in named_leaves(tree):
            entries.setdefault(leaf.path, {})[name] = leaf.value

    for node in muons:
        put(node.mu, "momentum_buffer")
    for node in adams:
        put(node.mu, "exp_avg")
        put(node.nu, "exp_avg_sq")
    return from_torch_muon(entries, fresh, momentum=momentum, step=int(muons[0].count))


def _nodes(state: Any, kind: type) -> list[Any]:
    """All states of one kind, wherever they are."""

    def is_kind(node: Any) -> bool:
        return isinstance(node, kind)

    return [node for node in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(node)]


def _array(state: Mapping[str, Entry], leaf: NamedLeaf, name: str, factor: float) -> jax.Array:
    """The array ``name`` of a parameter, in the dtype and place of ``leaf``, the fresh one."""
    entry = state.get(leaf.path, {})
    if name not in entry:
        raise ValueError(
            f"{show(leaf.path)} needs {name!r}, and the state has {', '.join(map(repr, sorted(entry))) or 'nothing'} "
            f"for it. Train it as the run did: layouts={{{leaf.path!r}: None}} sends it to AdamW, a layout such as "
            "'io' to Muon."
        )
    found = jnp.asarray(entry[name])
    if found.shape != leaf.shape:
        raise ValueError(
            f"{name!r} of {show(leaf.path)} has shape {found.shape} and the parameter {leaf.shape}: PyTorch stores "
            "weights (out, in), Flax kernels are (in, out). Transpose it as you transpose the weight."
        )
    # Scaled in float32: a bfloat16 average times 20 is rounded once.
    scaled = factor * found.astype(jnp.promote_types(found.dtype, jnp.float32))
    return jax.device_put(scaled.astype(leaf.dtype), getattr(leaf.value, "sharding", None))


def _at_step(fresh: Any, step: int) -> Any:
    """``fresh`` with its counters at ``step``."""

    def counted(leaf: NamedLeaf) -> Any:
        counts = (
            leaf.path.rpartition("/")[2] in _COUNTERS and not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)
        )
        if not counts:
            return leaf.value
        return jax.device_put(jnp.asarray(step, leaf.dtype), getattr(leaf.value, "sharding", None))

    return jax.tree.unflatten(jax.tree.structure(fresh), list(map(counted, named_leaves(fresh))))


def _refuse_left_over(state: Mapping[str, Entry], used: Set[tuple[str, str]]) -> None:
    left = [(path, name) for path, entry in state.items() for name in _ARRAYS if name in entry]
    unused = [f"{name!r} of {show(path)}" for path, name in left if (path, name) not in used]
    if unused:
        raise ValueError(
            f"There is no place for {', '.join(unused[:5])}{' and more' if len(unused) > 5 else ''} in the fresh "
            "state: it must be `optimizer.init(params)` of the same parameters, each trained as the run did, with "
            "momentum kept by a number, a schedule or an average."
        )
