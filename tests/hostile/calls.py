"""Hostile calls: layouts that do not fit, trees and states that change between steps, arguments nobody can want."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle

import muon_optax as mo
from hostile.attempts import (
    Factory,
    alone,
    between_steps,
    decays,
    goes_on,
    made,
    refused,
    same_states,
    vector_follows_adam,
    with_coefficients_changed,
    with_state,
    without,
)
from hostile.contenders import Contender, optax_muon, our_muon
from hostile.gradients import RIGHT
from hostile.leaves import SAME, Model
from hostile.oracles import B2, LEARNING_RATE, MOMENTUM, muon_update
from hostile.row import Row
from hostile.trees import plain

BY_PATH = "refused, naming the path"
WHAT_A_LAYOUT_IS = "refused, saying what a layout is"

Numbers = optax.contrib.MuonDimensionNumbers
layout = partial(Row, "layouts", refused=True)


def said(layouts: Any, **numbers: Any) -> Callable[[Any], None]:
    """Layouts, and what comes nearest to them in the words of ``optax.contrib.muon``."""
    theirs = {"other": Numbers(), "w": Numbers(), "b": None} | numbers
    return refused(lambda: our_muon(layouts), lambda: optax_muon(muon_weight_dimension_numbers=theirs))


LAYOUTS = [
    layout("more axes than the matrix has", BY_PATH, attempt=said({"w": "ioo"}, w=Numbers(0, (1, 2))), words=("'w'",)),
    layout("axes out of range", BY_PATH, attempt=said({"w": "bbbbbiboo"}, w=Numbers(5, (7, 8))), words=("'w'",)),
    layout("no output axis", WHAT_A_LAYOUT_IS, attempt=said({"w": "ii"}, w=Numbers((0, 1), ())), words=("'ii'",)),
    layout("a number in place of a layout", WHAT_A_LAYOUT_IS, attempt=said({"w": 3}, w=3), words=("3",)),
    layout("a matrix's layout for a vector", BY_PATH, attempt=said({"b": "io"}, b=Numbers()), words=("'b'",)),
    layout(
        "the name of no parameter",
        "refused, naming it and the paths there are",
        attempt=said({"typo": "io"}, typo=Numbers()),
        words=("typo",),
    ),
    layout(
        "text in place of the mapping",
        "refused, saying what it has to be",
        attempt=refused(lambda: our_muon("io"), lambda: optax_muon(muon_weight_dimension_numbers="io")),
        words=("'io'",),
    ),
]

BETWEEN_STEPS = [
    Row("between steps", name, BY_PATH, attempt=between_steps(change), refused=True, words=(word,))
    for name, word, change in (
        ("a matrix appears", "extra", lambda tree: tree | {"extra": tree["w"]}),
        ("a vector appears", "extra", lambda tree: tree | {"extra": tree["b"]}),
        ("a matrix vanishes", "other", lambda tree: without(tree, "other")),
        ("a matrix becomes None", "other", lambda tree: tree | {"other": None}),
        ("a matrix is renamed", "other", lambda tree: without(tree, "other") | {"renamed": tree["other"]}),
        ("a matrix is transposed", "other", lambda tree: tree | {"other": tree["other"].T}),
        ("a matrix becomes a vector", "other", lambda tree: tree | {"other": tree["b"]}),
        ("a vector grows", "'b'", lambda tree: tree | {"b": jnp.ones(24)}),
    )
]

GENTLE = ((1.2, -0.2, 0.0),) * 5  # a third away from KELLER's result

state = partial(Row, "states")
foreign = partial(state, promise="refused, saying what state is needed", refused=True, words=("state", "init"))


def ours_with(coefficients: Any) -> Factory:
    return lambda: our_muon(orthogonalizer=mo.newton_schulz(coefficients))


def of_a_partition(contender: Contender, params: Any) -> Any:
    """The labels of either library, and transforms of neither."""
    vectors = "adamw" if contender.ours else "adam"
    return optax.partition(
        {"muon": optax.sgd(0.1), vectors: optax.adamw(0.1)}, {"other": "muon", "w": "muon", "b": vectors}
    ).init(params)


def of_another_model(contender: Contender, params: Any) -> Any:
    return contender.build(None, params).init({"old": params["w"], "b": params["b"]})


STATES = [
    foreign("of optax.adamw", attempt=with_state(lambda contender, params: optax.adamw(0.1).init(params))),
    foreign(
        "of the other library's muon",
        attempt=with_state(lambda contender, params: (optax_muon if contender.ours else our_muon)().init(params)),
    ),
    foreign("of another optax.partition", attempt=with_state(of_a_partition)),
    foreign(
        "of a chain around the same optimizer",
        attempt=with_state(lambda contender, params: optax.chain(contender.build(None, params)).init(params)),
    ),
    foreign(
        "of optax.MultiSteps around the same optimizer",
        attempt=with_state(lambda contender, params: optax.MultiSteps(contender.build(None, params), 2).init(params)),
    ),
    foreign("None", attempt=with_state(lambda contender, params: None)),
    foreign("an empty tuple", attempt=with_state(lambda contender, params: ())),
    foreign(
        "plain dicts, as Orbax restores without a target",
        attempt=with_state(lambda contender, params: {"inner_states": {"muon": {}, "adamw": {}}}),
    ),
    state(
        "of the same optimizer for another model",
        BY_PATH,
        attempt=with_state(of_another_model),
        refused=True,
        words=("old",),
    ),
    state("restored as NumPy arrays", SAME, attempt=goes_on(lambda restored: jax.tree.map(np.asarray, restored))),
    state(
        "from before the coefficients were changed",
        "those count that were given last",
        attempt=with_coefficients_changed(
            (our_muon, optax_muon), (ours_with(GENTLE), lambda: optax_muon(ns_coeffs=GENTLE[0])), GENTLE
        ),
    ),
    state(
        "from before the number of steps was changed",
        "the checkpoint still fits",
        attempt=same_states(
            (ours_with(mo.KELLER), lambda: optax_muon(ns_coeffs=mo.KELLER)),
            (ours_with(mo.DEEPSEEK_V4), lambda: optax_muon(ns_coeffs=mo.DEEPSEEK_V4, ns_steps=10)),
        ),
    ),
]

NAN = float("nan")
FOUR = mo.polar_express(4)
TEN = mo.DEEPSEEK_V4

argument = partial(Row, "arguments")


def unwanted(name: str, word: str, ours: Factory, theirs: Factory) -> Row:
    return argument(name, "refused, naming it", attempt=refused(ours, theirs), refused=True, words=(word,))


def half_decayed(mask: Any) -> optax.GradientTransformation:
    return our_muon(weight_decay=0.5, weight_decay_mask=mask)


def half_decayed_by_optax(mask: Any, vectors: float = 0.5) -> optax.GradientTransformation:
    return optax_muon(weight_decay=0.5, adam_weight_decay=vectors, weight_decay_mask=mask)


def injected() -> optax.GradientTransformation:
    return optax.inject_hyperparams(mo.muon, static_args=("orthogonalizer", "scale", "layouts"))(
        learning_rate=LEARNING_RATE, momentum=MOMENTUM, nesterov=False, scale="keller", weight_decay=0.0
    )


def injected_into_optax() -> optax.GradientTransformation:
    return optax.inject_hyperparams(optax.contrib.muon)(
        learning_rate=LEARNING_RATE, beta=MOMENTUM, nesterov=False, adam_b2=B2
    )


ARGUMENTS = [
    unwanted("momentum 1", "1.0", lambda: our_muon(momentum=1.0), lambda: optax_muon(beta=1.0)),
    unwanted("momentum -0.5", "-0.5", lambda: our_muon(momentum=-0.5), lambda: optax_muon(beta=-0.5)),
    unwanted("learning rate NaN", "nan", lambda: mo.muon(NAN), lambda: optax.contrib.muon(NAN)),
    unwanted("learning rate -0.1", "-0.1", lambda: mo.muon(-0.1), lambda: optax.contrib.muon(-0.1)),
    unwanted("text as a learning rate", "fast", lambda: mo.muon("fast"), lambda: optax.contrib.muon("fast")),
    unwanted(
        "infinite weight decay",
        "inf",
        lambda: our_muon(weight_decay=np.inf),
        lambda: optax_muon(weight_decay=np.inf),
    ),
    unwanted(
        "a momentum in int8",
        "int8",
        lambda: our_muon(momentum_dtype=jnp.int8),
        lambda: optax_muon(mu_dtype=jnp.int8),
    ),
    unwanted("no Newton-Schulz steps", "coeff", ours_with(()), lambda: optax_muon(ns_steps=0)),
    unwanted(
        "two coefficients a step",
        "coeff",
        ours_with(((1.5, -0.5),)),
        lambda: optax_muon(ns_coeffs=((1.5, -0.5),)),
    ),
    unwanted("a coefficient NaN", "coeff", ours_with(((NAN, 0.0, 0.0),)), lambda: optax_muon(ns_coeffs=(NAN, 0, 0))),
    unwanted(
        "coefficients that diverge",
        "10.0",
        ours_with(((10.0, 0.0, 0.0),) * 5),
        lambda: optax_muon(ns_coeffs=(10.0, 0.0, 0.0)),
    ),
    unwanted(
        "an unknown norm",
        "nuclear",
        lambda: our_muon(orthogonalizer=mo.newton_schulz(norm="nuclear")),
        lambda: optax_muon(preconditioning="nuclear"),
    ),
    argument(
        "the documented preset of Keller Jordan's coefficients",
        RIGHT,
        attempt=made(ours_with(mo.KELLER), lambda: optax_muon(ns_coeffs="muon"), plain()),
        words=("muon",),
    ),
    argument(
        "coefficients of four steps",
        "four steps",
        attempt=made(
            ours_with(FOUR),
            lambda: optax_muon(ns_coeffs=FOUR),
            plain(),
            partial(muon_update, coefficients=FOUR),
        ),
        words=("4",),
    ),
    argument(
        "coefficients of ten steps",
        "ten steps",
        attempt=made(
            ours_with(TEN), lambda: optax_muon(ns_coeffs=TEN), plain(), partial(muon_update, coefficients=TEN)
        ),
        words=("10",),
    ),
    argument(
        "the orthogonalizing part alone, on a dict",
        RIGHT,
        attempt=alone(mo.orthogonalize_via_newton_schulz, optax.contrib.scale_by_muon, oracle.newton_schulz),
    ),
    argument(
        "a decay mask",
        "it holds for AdamW's parameters too",
        attempt=decays(half_decayed, half_decayed_by_optax, dict),
    ),
    argument(
        "a decay mask that is a model and can be called (Equinox)",
        "read as a tree",
        attempt=decays(half_decayed, partial(half_decayed_by_optax, vectors=0.0), Model),
    ),
    argument(
        "Nesterov momentum for the matrices",
        "AdamW stays as it is",
        attempt=vector_follows_adam(lambda: our_muon(nesterov=True), lambda: optax_muon(nesterov=True)),
    ),
    argument("optax.inject_hyperparams", SAME, attempt=made(injected, injected_into_optax, plain())),
]
