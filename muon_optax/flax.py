"""Exact layouts of Flax models, NNX and Linen, from their layers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
from flax import linen, nnx
from flax.linen.recurrent import DenseParams

from muon_optax._layouts.assigning.last_layers import last_layers
from muon_optax._layouts.assigning.told_by_layers import Known, combine, convolution_layout, einsum_layout
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves


def layouts_of(
    model: nnx.Module | linen.Module,
    *inputs: Any,
    wrt: Any = nnx.Param,
    rngs: Any = None,
    layouts: Mapping[str, Layout | str | None] | None = None,
    **options: Any,
) -> dict[str, Layout | None]:
    """The layout of every parameter of a Flax model, exact for Flax's own layers and by the default rules for the rest.

    An NNX model is asked for its layers; nothing runs. A Linen model is initialized in the abstract, on shapes, and
    its layers are asked as they are called. Subclasses count as the layer they derive from.

    With inputs the model's output is followed back to the layers that make it, whatever their names: they go to AdamW,
    as heads do. Without inputs, for NNX alone, heads are judged as the default rules do, by names and sizes. A result
    of several layers, as behind a residual connection, has no last layer.

    Args:
        model: An NNX model, concrete or from ``nnx.eval_shape``, or a Linen module.
        *inputs: What the model is called with: arrays or ``ShapeDtypeStruct`` of any batch size. A Linen model needs
            them.
        wrt: For NNX, which variables the optimizer trains, as in ``nnx.Optimizer(model, optimizer, wrt=...)``.
        rngs: For Linen, the keys that ``init`` takes. Default: one key for parameters and one for dropout.
        layouts: Path globs that go before the layers, as in :func:`muon_optax.assign_layouts`.
        **options: More arguments of the call, such as ``train=False``; for Linen also ``method=...``.

    Returns:
        A mapping from path to layout, which ``muon(..., layouts=...)`` takes. The paths are those of
        ``nnx.state(model, wrt)``, or of ``model.init(...)["params"]``.

    Raises:
        TypeError: If ``model`` is neither, or if an NNX model is given options without inputs.
        ValueError: As in :func:`muon_optax.assign_layouts`.

    Warns:
        UserWarning: As :func:`muon_optax.assign_layouts`, of arrays that neither a layer nor a rule knows.

    Example:
        >>> import muon_optax as mo
        >>> from flax import nnx
        >>> from muon_optax.flax import layouts_of
        >>> model = nnx.Einsum("bd,ndh->bnh", (4, 8, 2), (4, 2), rngs=nnx.Rngs(0))
        >>> {path: str(layout) for path, layout in layouts_of(model).items()}
        {'bias': 'None', 'kernel': 'oio'}
        >>> optimizer = nnx.Optimizer(model, mo.muon(1e-3, layouts=layouts_of(model)), wrt=nnx.Param)
    """
    if isinstance(model, nnx.Module):
        if options and not inputs:
            raise TypeError("Options belong to a call: layouts_of(model, *inputs, **options), or layouts_of(model).")
        params, known = _from_nnx(model, wrt)
        last = _last_of_nnx(model, wrt, params, inputs, options) if inputs else None
    elif isinstance(model, linen.Module):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)} if rngs is None else rngs
        params, known, last = _from_linen(model, rngs, inputs, options)
    else:
        raise TypeError(f"layouts_of takes an NNX model or a Linen module; got {type(model).__name__}.")
    return combine(params, known, layouts, last)


# NNX: each function lists a layer's variables with what is known of them.

Variables: TypeAlias = Iterator[tuple[Any, Known]]


def _nnx_linear(layer: nnx.Linear) -> Variables:
    yield layer.kernel, Known(Layout("io"), (layer.in_features, layer.out_features))


def _nnx_linear_general(layer: nnx.LinearGeneral) -> Variables:
    batch, inputs, outputs = tuple(layer.batch_axis.values()), tuple(layer.in_features), tuple(layer.out_features)
    letters = "b" * len(batch) + "i" * len(inputs) + "o" * len(outputs)
    yield layer.kernel, Known(Layout(letters), (*batch, *inputs, *outputs))


def _nnx_einsum(layer: nnx.Einsum) -> Variables:
    yield layer.kernel, Known(einsum_layout(layer.einsum_str), tuple(layer.kernel_shape))


def _nnx_conv(layer: nnx.Conv) -> Variables:
    shape = tuple(layer.kernel_shape)
    layout = convolution_layout(len(shape) - 2, layer.feature_group_count, layer.out_features, shape[-2])
    yield layer.kernel, Known(layout, shape)


def _nnx_conv_transpose(layer: nnx.ConvTranspose) -> Variables:
    shape = tuple(layer.kernel_shape)
    yield layer.kernel, Known(convolution_layout(len(shape) - 2, 1, shape[-1], 0, layer.transpose_kernel), shape)


def _nnx_lora(layer: nnx.LoRA) -> Variables:
    rank = layer.lora_a.shape[-1]  # kept nowhere else
    yield layer.lora_a, Known(Layout("io"), (layer.in_features, rank))
    yield layer.lora_b, Known(Layout("io"), (rank, layer.out_features))


def _nnx_gates(gates: int) -> Callable[[Any], Variables]:
    def of_cell(cell: Any) -> Variables:
        for dense, inputs in ((cell.dense_i, cell.in_features), (cell.dense_h, cell.hidden_features)):
            layout = Layout("io", (cell.hidden_features,) * gates)
            yield dense.kernel, Known(layout, (inputs, gates * cell.hidden_features))

    return of_cell


def _nnx_vectors(layer: nnx.Module) -> Variables:
    yield from ((value, Known(None)) for value in vars(layer).values() if isinstance(value, nnx.Variable))


def _nnx_bias(layer: Any) -> Variables:
    # Its shape helps to find where a stack of layers lies; that of an Einsum's depends on its call.
    outputs = () if isinstance(layer, nnx.Einsum) else layer.out_features
    batch = tuple(getattr(layer, "batch_axis", {}).values())
    if layer.bias is not None:
        yield layer.bias, Known(None, (*batch, *((outputs,) if isinstance(outputs, int) else outputs)))


# Later lines overrule earlier ones: gates are blocks of their Linear, and a tied table is an embedding wherever else it
# is used.
NNX_LAYERS: tuple[tuple[Any, Callable[[Any], Variables]], ...] = (
    ((nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose), _nnx_bias),
    (nnx.Linear, _nnx_linear),
    (nnx.LinearGeneral, _nnx_linear_general),
    (nnx.Einsum, _nnx_einsum),
    (nnx.Conv, _nnx_conv),
    (nnx.ConvTranspose, _nnx_conv_transpose),
    (nnx.LoRA, _nnx_lora),
    (nnx.GRUCell, _nnx_gates(3)),
    (nnx.OptimizedLSTMCell, _nnx_gates(4)),
    ((nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm), _nnx_vectors),
    ((nnx.WeightNorm, nnx.SpectralNorm, nnx.PReLU, nnx.Embed), _nnx_vectors),
)


def _from_nnx(model: nnx.Module, wrt: Any) -> tuple[Any, dict[str, Known]]:
    modules = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    said = {
        id(variable): known
        for kind, layer_function in NNX_LAYERS
        for module in modules
        if isinstance(module, kind)
        for variable, known in layer_function(module)
    }
    params = nnx.state(model, wrt)
    # The state holds copies, under one of the paths of a shared variable: the path leads to the variable itself.
    variables = {"/".join(map(str, path)): _at(model, path) for path, _ in nnx.to_flat_state(params)}
    return params, {path: said[id(variable)] for path, variable in variables.items() if id(variable) in said}


def _last_of_nnx(
    model: nnx.Module, wrt: Any, params: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]
) -> set[str] | None:
    graph, _, others = nnx.split(model, wrt, ...)

    def call(params: Any, *inputs: Any) -> Any:
        return nnx.merge(graph, params, others)(*inputs, **options)

    return last_layers(call, params, *inputs)


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key] if isinstance(node, Mapping | list | tuple | nnx.List) else getattr(node, key, None)
    return node


# Linen: each function names a layer's arrays, by their paths in the layer.

Arrays: TypeAlias = dict[str, Layout | None]


def _linen_kernel(layout: Layout | None) -> Arrays:
    return {"kernel": layout, "bias": None}


def _linen_dense(layer: Any, inputs: Any) -> Arrays:
    del layer, inputs
    return _linen_kernel(Layout("io"))


def _linen_dense_general(layer: linen.DenseGeneral, inputs: Any) -> Arrays:
    del inputs
    return _linen_kernel(Layout("b" * _axes(layer.batch_dims) + "i" * _axes(layer.axis) + "o" * _axes(layer.features)))


def _linen_einsum(layer: linen.Einsum, inputs: tuple[Any, ...]) -> Arrays:
    equation = layer.einsum_str or inputs[1]  # given to the layer or to its call
    return _linen_kernel(einsum_layout(equation))


def _linen_conv(layer: linen.Conv, inputs: tuple[Any, ...]) -> Arrays:
    groups = layer.feature_group_count
    channels = inputs[0].shape[-1] // groups
    return _linen_kernel(convolution_layout(_axes(layer.kernel_size), groups, layer.features, channels))


def _linen_conv_local(layer: linen.ConvLocal, inputs: Any) -> Arrays:
    del inputs
    return _linen_kernel(Layout("b" * _axes(layer.kernel_size) + "io"))  # a kernel for each position


def _linen_conv_transpose(layer: linen.ConvTranspose, inputs: Any) -> Arrays:
    del inputs
    return _linen_kernel(convolution_layout(_axes(layer.kernel_size), 1, layer.features, 0, layer.transpose_kernel))


def _linen_conv_lstm(cell: linen.ConvLSTMCell, inputs: Any) -> Arrays:
    del inputs
    layout = Layout("i" * _axes(cell.kernel_size) + "io", (cell.features,) * 4)
    return {"ih/kernel": layout, "hh/kernel": layout}


def _linen_vectors(layer: linen.Module, inputs: Any) -> Arrays:
    del inputs
    arrays = layer.variables.get("params", {})  # a WeightNorm's hold those of the layer in it, too
    return {name: None for name, value in arrays.items() if not isinstance(value, Mapping)}


# As above, later lines overrule earlier ones.
LINEN_LAYERS: tuple[tuple[Any, Callable[[Any, Any], Arrays]], ...] = (
    ((linen.Dense, DenseParams), _linen_dense),
    (linen.DenseGeneral, _linen_dense_general),
    (linen.Einsum, _linen_einsum),
    (linen.Conv, _linen_conv),
    (linen.ConvLocal, _linen_conv_local),
    (linen.ConvTranspose, _linen_conv_transpose),
    (linen.ConvLSTMCell, _linen_conv_lstm),
    ((linen.LayerNorm, linen.RMSNorm, linen.BatchNorm, linen.GroupNorm, linen.InstanceNorm), _linen_vectors),
    ((linen.WeightNorm, linen.SpectralNorm, linen.PReLU, linen.Embed), _linen_vectors),
)


METHODS = ("__call__", "attend")  # an Embed may be used as a head alone


def _from_linen(
    model: linen.Module, rngs: Any, inputs: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Known], set[str] | None]:
    known: dict[str, Known] = {}

    def ask(method: Callable[..., Any], args: Any, kwargs: Any, context: linen.module.InterceptorContext) -> Any:
        outputs, layer = method(*args, **kwargs), context.module
        for kind, layer_function in LINEN_LAYERS:
            if isinstance(layer, kind) and layer.scope is not None and context.method_name in METHODS:
                own, prefix = _own_arrays(layer), "/".join(layer.path)
                for name, layout in layer_function(layer, (*args, *kwargs.values())).items():
                    if name in own:
                        known[f"{prefix}/{name}" if prefix else name] = Known(layout, own[name])
        return outputs

    with linen.intercept_methods(ask):
        variables = jax.eval_shape(lambda *given: model.init(rngs, *given, **options), *inputs)

    def call(params: Any, others: Any, *given: Any) -> Any:
        # Whatever a layer keeps besides may change; only what the model returns is followed.
        return model.apply({**others, "params": params}, *given, rngs=rngs, mutable=True, **options)[0]

    params, others = variables.get("params", {}), {name: kept for name, kept in variables.items() if name != "params"}
    return params, known, last_layers(call, params, others, *inputs)


def _own_arrays(layer: linen.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a bound layer's arrays as the layer sees them, which is without the stack that a scan makes."""
    return {leaf.path: leaf.shape for leaf in named_leaves(layer.variables.get("params", {}))}


def _axes(given: Any) -> int:
    return 1 if isinstance(given, int) else len(given)
