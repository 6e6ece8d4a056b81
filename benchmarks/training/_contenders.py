"""The optimizers that the convergence benchmark compares, each from the same few settings."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.shared.optimizers import dimension_numbers


class Settings(NamedTuple):
    """What every contender is made from. Numbers may be traced: one compiled step then serves all of them."""

    rate: optax.Schedule  # of the matrices, or of everything
    adamw_rate: optax.Schedule  # of what Muon leaves to AdamW
    decay: Any
    b2: Any  # of AdamW, of all leaves or of those that Muon leaves to it


Contender = Callable[[Settings, Any], optax.GradientTransformation]


def matrices_of_two_axes(params: Any) -> Any:
    """Where the main job decays AdamW's weights: everything but the norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def adamw(settings: Settings, params: Any, **changes: Any) -> optax.GradientTransformation:
    """The baseline, as the main job has it, with ``changes`` of its arguments."""
    del params
    return others(settings, settings.rate, **changes)


def others(settings: Settings, rate: optax.Schedule, **changes: Any) -> optax.GradientTransformation:
    """AdamW for what is not orthogonalized."""
    arguments = {"b2": settings.b2, "weight_decay": settings.decay, "mask": matrices_of_two_axes} | changes
    return optax.adamw(rate, **arguments)


def muon(
    settings: Settings, params: Any, in_adamw: Mapping[str, Any] | None = None, **changes: Any
) -> optax.GradientTransformation:
    """``mo.muon`` with ``changes`` of its arguments, and others ``in_adamw``."""
    del params
    adamw = others(settings, settings.adamw_rate, **(in_adamw or {}))
    return mo.muon(settings.rate, **{"weight_decay": settings.decay, "adamw": adamw} | changes)


def optax_muon(settings: Settings, params: Any) -> optax.GradientTransformation:
    """``optax.contrib.muon`` with Moonlight's scale, on the matrices that ``mo.muon`` takes."""
    return optax.contrib.muon(
        settings.rate,
        weight_decay=settings.decay,
        consistent_rms=0.2,
        adam_b2=settings.b2,
        adam_weight_decay=settings.decay,
        adam_learning_rate=settings.adamw_rate,
        muon_weight_dimension_numbers=dimension_numbers(params),
    )


def chained(settings: Settings, params: Any, *parts: Any, decay: Any = optax.add_decayed_weights) -> Any:
    """Muon from its parts: ``parts`` stand between the momentum and the decay."""
    del params
    matrices = optax.chain(
        optax.trace(0.95, nesterov=True),
        *parts,
        decay(settings.decay),
        optax.scale_by_learning_rate(settings.rate),
    )
    return mo.partition_by_layout(matrices, others(settings, settings.adamw_rate))


def cautious(settings: Settings, params: Any) -> optax.GradientTransformation:
    """Muon, whose decay is cautious."""
    parts = mo.orthogonalize_via_newton_schulz(), mo.scale_by_shape("moonlight")
    return chained(settings, params, *parts, decay=mo.add_cautious_decayed_weights)


def adamuon(settings: Settings, params: Any) -> optax.GradientTransformation:
    """The paper's chain: sign, orthogonalization, second moments and RMS step are one part."""
    return chained(settings, params, mo.scale_by_adamuon())


def normuon(settings: Settings, params: Any) -> optax.GradientTransformation:
    """As ``mo.recipes.normuon``, which has no second rate for AdamW."""
    parts = mo.orthogonalize_via_newton_schulz(), mo.scale_by_normuon(), mo.scale_by_shape("moonlight")
    return chained(settings, params, *parts)


def muon_h(settings: Settings, params: Any) -> optax.GradientTransformation:
    """The recipe, which decays nothing."""
    del params
    return mo.recipes.muon_h(settings.rate, adamw_learning_rate=settings.adamw_rate)


def muon_speedrun(settings: Settings, params: Any) -> optax.GradientTransformation:
    """The recipe, with its own decay."""
    del params
    return mo.recipes.muon_speedrun(settings.rate, adamw_learning_rate=settings.adamw_rate)


WITHOUT_BIAS = mo.nesterov_ema(0.95, debias=True)

CONTENDERS: dict[str, Contender] = {
    "adamw": adamw,
    "adamw, Nesterov": partial(adamw, nesterov=True),
    "adamw, b1 0.8": partial(adamw, b1=0.8),
    "adamw, b1 0.8, Nesterov": partial(adamw, b1=0.8, nesterov=True),
    "adamw, decay 1": partial(adamw, weight_decay=1.0),
    "muon": muon,
    "muon, keller scale": partial(muon, scale="keller"),
    "muon, mup scale": partial(muon, scale="mup"),
    "muon, naive scale": partial(muon, scale="naive"),
    # Decay of the matrices alone. A step decays by rate times decay, which those scales have more of.
    "muon, decay 0.3": partial(muon, weight_decay=0.3),
    "muon, decay 1": partial(muon, weight_decay=1.0),
    "muon, You Jiacheng": partial(muon, orthogonalizer=mo.newton_schulz(mo.YOU_JIACHENG)),
    "muon, Polar Express": partial(muon, orthogonalizer=mo.newton_schulz(mo.polar_express(5))),
    "muon, four steps": partial(muon, orthogonalizer=mo.newton_schulz(mo.polar_express(4, 4e-3), norm="schatten4")),
    # What optax.contrib.muon does otherwise, one by one.
    "muon, Nesterov in AdamW": partial(muon, in_adamw={"nesterov": True}),
    "muon, momentum without bias": partial(muon, momentum=WITHOUT_BIAS),
    "muon, float32 products": partial(muon, orthogonalizer=mo.newton_schulz(dtype=jnp.float32)),
    "muon, norms decayed": partial(muon, in_adamw={"mask": None}),
    "muon, all of these": partial(
        muon,
        momentum=WITHOUT_BIAS,
        orthogonalizer=mo.newton_schulz(dtype=jnp.float32),
        in_adamw={"nesterov": True, "mask": None},
    ),
    "muon, per head": partial(muon, layouts=mo.per_head),
    "muon, cautious decay": cautious,
    "muon, momentum warm-up": partial(muon, momentum=optax.linear_schedule(0.85, 0.95, 90)),
    "muon, momentum 0.9": partial(muon, momentum=0.9),
    "muon, momentum 0.9, Nesterov in AdamW": partial(muon, momentum=0.9, in_adamw={"nesterov": True}),
    "muon, momentum 0.85, Nesterov in AdamW": partial(muon, momentum=0.85, in_adamw={"nesterov": True}),
    "muon, averaged momentum": partial(muon, momentum=mo.nesterov_ema(0.95)),
    "muon, 8-bit momentum": partial(muon, momentum=mo.quantized_trace(0.95, nesterov=True)),
    "muon, 4-bit momentum": partial(muon, momentum=mo.quantized_trace(0.95, nesterov=True, bits=4)),
    "adamuon": adamuon,
    "optax.contrib.muon": optax_muon,
    "normuon": normuon,
    "muon_h": muon_h,
    "muon_speedrun": muon_speedrun,
}
