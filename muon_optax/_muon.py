"""The factory: Muon for matrices, AdamW for the rest."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from muon_optax._factory import assemble, decay_and_rate, default_adamw
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._transforms.by_path.chosen import Chosen, SettingsByPath
from muon_optax._transforms.by_path.parts import momentum_by_path, orthogonalize_by_path, scale_by_path
from muon_optax._transforms.checks.arguments import check_adamw, refuse_injected_array
from muon_optax._transforms.checks.keywords import explain_arguments
from muon_optax._transforms.decay_mask import as_mask_function
from muon_optax._transforms.momenta.momentum import Momentum
from muon_optax._transforms.scales import Scale


@explain_arguments
def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    weight_decay_mask: Any | Callable[[optax.Params], Any] | None = None,
    momentum: Momentum = 0.95,
    nesterov: bool = True,
    momentum_dtype: jax.typing.DTypeLike | None = None,
    scale: Scale = "moonlight",
    orthogonalizer: Callable[[jax.Array], jax.Array] | None = None,
    layouts: Layouts = None,
    adamw_learning_rate: optax.ScalarOrSchedule | None = None,
    adamw: optax.GradientTransformation | None = None,
    shardings: Any = None,
    by_path: SettingsByPath = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon for the matrices of a model and AdamW for everything else.

    For a matrix ``W`` with gradient ``g``: ``m <- momentum m + g``; ``O = orthogonalizer(g + momentum m)``;
    ``W <- W - learning_rate (scale O + weight_decay W)``. Embeddings, heads, biases and norms go to AdamW. It is
    :func:`muon_optax.partition_by_layout` of ``optax.chain(optax.trace, orthogonalize, scale_by_shape,
    optax.add_decayed_weights, optax.scale_by_learning_rate)`` and ``optax.adamw``. Each of them counts the step, so a
    number may become a schedule in the middle of a run. To change more than the arguments below, chain the parts
    yourself.

    Args:
        learning_rate: Step size, for both branches: a number >= 0, a scalar array or an Optax schedule. With the
            default scale begin at AdamW's learning rate, then try two and four times that. In our runs of 0.3M to 3M
            parameters the best was two to five times AdamW's.
        weight_decay: Decoupled decay, for both branches: a number >= 0, a scalar array or a schedule. Multiplied by the
            learning rate, not by the scale. Default 0.1, as in the large published runs with AdamW and Muon.
        weight_decay_mask: A tree of booleans like the parameters, or a function from parameters to one, for both
            branches: decay where ``True``. Default: all matrices, and of AdamW's leaves those of two or more axes
            that are neither biases nor norms.
        momentum: A number in [0, 1) or a schedule, kept by :func:`muon_optax.scheduled_trace`; or a transform in its
            place, such as :func:`muon_optax.quantized_trace`, with its own Nesterov and dtype.
            Default 0.95, as in Keller Jordan's and PyTorch's Muon. Under ``optax.inject_hyperparams`` Optax evaluates
            the schedule and rounds the value to the parameters' dtype; ``static_args=("momentum",)`` keeps it float32.
        nesterov: Whether to orthogonalize ``g + momentum m`` (default) or ``m``.
        momentum_dtype: The dtype in which momentum is stored; ``None`` for each parameter's own.
        scale: As ``variant`` in :func:`muon_optax.scale_by_shape`.
        orthogonalizer: A function from matrices ``(*batch, rows, cols)`` to matrices of the same shape. ``None`` for
            :func:`muon_optax.newton_schulz` with its defaults.
        layouts: How leaves are read as matrices, as in :func:`muon_optax.assign_layouts`.
        adamw_learning_rate: For the AdamW branch alone, with the same decay and mask: a number >= 0, a scalar array or
            a schedule. ``None`` for ``learning_rate``. Not together with ``adamw``.
        adamw: Any transform, for the leaves without a layout, in place of ``optax.adamw(adamw_learning_rate, b1=0.9,
            b2=0.95, eps=1e-8, weight_decay=weight_decay, mask=...)``; it brings its own learning rate, sign and decay.
            To differentiate through the optimizer (MAML) pass ``optax.adamw(learning_rate, eps_root=1e-8)``. Otherwise
            the square root has no finite derivative at a gradient of zero.
        shardings: How the parameters lie on a mesh, as in :func:`muon_optax.orthogonalize`: a tree like them of
            ``NamedSharding``, or of arrays that carry one, or a :func:`muon_optax.plan`. Only needed where the mesh
            has Auto axes. With a plan made ``over`` a mesh axis the state stays spread over it (ZeRO-1).
        by_path: A mapping from path glob to :class:`muon_optax.Settings` for groups of parameters with a rate, decay,
            momentum, scale or orthogonalizer of their own. As with ``layouts``, a leaf's exact path counts first, then
            the first glob that matches. The state does not depend on it, so a run may change it.

    Returns:
        A transform whose state holds one momentum for each matrix, AdamW's two for each other parameter, and counters.
        ``update`` needs ``params``. Updates come back in the dtypes of the gradients.

    Raises:
        ValueError: At construction, for a number out of range, an unknown scale, an integer ``momentum_dtype``,
            shardings on several meshes, or ``adamw_learning_rate`` beside ``adamw``; at ``init``, for layouts or
            shardings that do not fit, globs of ``by_path`` that match nothing or never act, settings that can act on
            none of a glob's parameters, and for leaves that can't be trained; at ``update``, without ``params``, with
            another tree, or with a state that keeps something else. Messages name the path and what changed.
        TypeError: At ``init``, for a leaf that is not an array; at construction, for an argument of another Muon, with
            what to write in its place, and for an argument of another type, also where ``optax.inject_hyperparams``
            called it as a schedule because ``static_args`` does not name it.

    Warns:
        UserWarning: At ``init``, with the paths of arrays that no rule knows, which AdamW trains, or if no parameter is
            seen as a matrix at all.

    References:
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024.
        Jingyuan Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, 2025.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo, optax
        >>> params = {"kernel": jnp.eye(4), "bias": jnp.ones(4)}
        >>> optimizer = mo.muon(3e-4, weight_decay=0.1)
        >>> state = optimizer.init(params)
        >>> gradients = jax.tree.map(jnp.ones_like, params)
        >>> updates, state = optimizer.update(gradients, state, params)
        >>> params = optax.apply_updates(params, updates)
    """
    chosen = Chosen(by_path)
    trace = momentum_by_path(momentum, nesterov, momentum_dtype, chosen)
    check_adamw(adamw, adamw_learning_rate)
    for name, value in {"orthogonalizer": orthogonalizer, "scale": scale}.items():
        refuse_injected_array(name, value)
    mask = as_mask_function(weight_decay_mask)
    matrices = (
        trace,
        orthogonalize_by_path(newton_schulz() if orthogonalizer is None else orthogonalizer, shardings, chosen),
        scale_by_path(scale, chosen),
        *decay_and_rate(learning_rate, weight_decay, mask, chosen),
    )
    if adamw is not None:
        return assemble(matrices, adamw, layouts, shardings, chosen, mask, own_adamw=True)
    rate = learning_rate if adamw_learning_rate is None else adamw_learning_rate
    return assemble(matrices, default_adamw(rate, weight_decay, mask, chosen), layouts, shardings, chosen, mask)
