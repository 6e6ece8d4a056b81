"""What the hostile rows try that is more than training on a tree: changes between steps, states, arguments, sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxpr import equations

import muon_optax as mo
from hostile.contenders import Contender
from hostile.oracles import LEARNING_RATE, adam_update, momentum, muon_update
from hostile.row import Row, WrongResultError, as_float64, check_numbers, last_updates, require, train_and_check
from hostile.trees import PLAIN, SHAPE, Build, plain, steps, vectors, weights
from muon_optax._orthogonalizers.coefficients import Coefficients

Attempt = Callable[[Contender], None]
Factory = Callable[[], optax.GradientTransformation]


def made(ours: Factory, theirs: Factory, inputs: Build, matrix: Callable[..., np.ndarray] = muon_update) -> Attempt:
    """Two optimizers that should give the same numbers."""

    def attempt(contender: Contender) -> None:
        chosen = contender._replace(build=lambda *_: (ours if contender.ours else theirs)(), matrix=matrix)
        train_and_check(chosen, Row("", "", "", inputs))

    return attempt


def refused(ours: Factory, theirs: Factory) -> Attempt:
    """Two optimizers that nobody can want: one that trains is wrong, whatever comes out."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        updates, *_ = last_updates((ours if contender.ours else theirs)(), given.params, given.gradients)
        finite = all(np.isfinite(as_float64(leaf)).all() for leaf in jax.tree.leaves(updates))
        raise WrongResultError("taken without a word" if finite else "taken without a word: NaN or infinite updates")

    return attempt


def between_steps(gradients: Callable[[Any], Any], params: Callable[[Any], Any] | None = None) -> Attempt:
    """One step, and a second one with another tree."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        optimizer = contender.build(None, given.params)
        _, state = optimizer.update(given.gradients[0], optimizer.init(given.params), given.params)
        optimizer.update(gradients(given.gradients[1]), state, (params or gradients)(given.params))
        raise WrongResultError("taken without a word")

    return attempt


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: leaf for key, leaf in tree.items() if key != name}


def with_state(make: Callable[[Contender, Any], Any]) -> Attempt:
    """A step with a state that something else made from the parameters."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        state = make(contender, given.params)
        contender.build(None, given.params).update(given.gradients[0], state, given.params)
        raise WrongResultError("taken without a word")

    return attempt


def goes_on(convert: Callable[[Any], Any]) -> Attempt:
    """A second step with the converted state of the first."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        optimizer = contender.build(None, given.params)
        _, state = optimizer.update(given.gradients[0], optimizer.init(given.params), given.params)
        updates, _ = optimizer.update(given.gradients[1], convert(state), given.params)
        check_plain(updates, muon_update)

    return attempt


def check_plain(updates: Any, matrix: Callable[..., np.ndarray]) -> None:
    """The updates of the second step of the plain tree, to a tenth."""
    want = {"other": matrix(steps(seed=1), "io"), "w": matrix(steps(), "io"), "b": adam_update(vectors())}
    for name in PLAIN:
        check_numbers(name, updates[name], want[name], 0.1)


def with_coefficients_changed(
    before: tuple[Factory, Factory], after: tuple[Factory, Factory], coefficients: Coefficients
) -> Attempt:
    """A state from before, and another optimizer from then on: its own coefficients count."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        old, new = ((ours if contender.ours else theirs)() for ours, theirs in (before, after))
        _, state = old.update(given.gradients[0], old.init(given.params), given.params)
        updates, _ = new.update(given.gradients[1], state, given.params)
        check_plain(updates, lambda gradients, axes: muon_update(gradients, axes, coefficients))

    return attempt


def same_states(few: tuple[Factory, Factory], many: tuple[Factory, Factory]) -> Attempt:
    """A checkpoint of the one can be read into the other."""

    def attempt(contender: Contender) -> None:
        params = plain()().params
        shapes = [
            jax.tree.map(jnp.shape, jax.eval_shape((ours if contender.ours else theirs)().init, params))
            for ours, theirs in (few, many)
        ]
        require(shapes[0] == shapes[1], "the state has another shape for another number of steps")

    return attempt


def scanned(inputs: Build) -> Attempt:
    """Steps in ``lax.scan``, which refuses a state that changes its dtypes."""

    def attempt(contender: Contender) -> None:
        given = inputs()
        optimizer = contender.build(given.layouts, given.params)

        def step(state: Any, gradient: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(gradient, state, given.params)
            return state, updates

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given.gradients)
        _, updates = jax.lax.scan(step, optimizer.init(given.params), stacked)
        check_plain(jax.tree.map(lambda leaf: leaf[-1], updates), muon_update)

    return attempt


def decays(ours: Callable[[Any], Any], theirs: Callable[[Any], Any], make: Callable[..., Any]) -> Attempt:
    """Zero gradients, and a mask that says: of a matrix ``w`` and a vector ``b`` only ``w`` decays, by a half."""

    def attempt(contender: Contender) -> None:
        params = make(w=jnp.asarray(weights(*SHAPE), jnp.float32), b=jnp.ones(12))
        optimizer = (ours if contender.ours else theirs)(make(w=True, b=False))
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, *_ = last_updates(optimizer, params, [zero])
        want = make(w=-LEARNING_RATE * 0.5 * weights(*SHAPE), b=np.zeros(12))
        for name, got, owed in zip(("b", "w"), *map(_by_name, (updates, want)), strict=True):
            check_numbers(name, got, owed, 1e-5)

    return attempt


def _by_name(tree: Any) -> tuple[Any, Any]:
    return (tree["b"], tree["w"]) if isinstance(tree, dict) else (tree.b, tree.w)


def vector_follows_adam(ours: Factory, theirs: Factory) -> Attempt:
    """What is set for the matrices does not reach the AdamW of the others."""

    def attempt(contender: Contender) -> None:
        given = plain()()
        updates, *_ = last_updates((ours if contender.ours else theirs)(), given.params, given.gradients)
        check_numbers("b", updates["b"], adam_update(vectors()), 1e-4)

    return attempt


def alone(ours: Factory, theirs: Factory, want: Callable[[np.ndarray], np.ndarray]) -> Attempt:
    """One part without its factory, on a dict of one matrix."""

    def attempt(contender: Contender) -> None:
        gradient = {"w": jnp.asarray(steps()[0], jnp.float32)}
        updates, *_ = last_updates((ours if contender.ours else theirs)(), gradient, [gradient])
        check_numbers("w", updates["w"], want(steps()[0]), 0.1)

    return attempt


def complex_matrix(contender: Contender) -> None:
    """A complex matrix that is given the layout of a matrix."""
    both = [first + 1j * second for first, second in zip(steps(), steps(seed=1), strict=True)]
    gradients = [{"extra": jnp.asarray(gradient, jnp.complex64)} for gradient in both]
    params = gradients[0]
    updates, *_ = last_updates(contender.build({"extra": "io"}, params), params, gradients)
    X = momentum(both)
    X = X / np.linalg.norm(X)
    for a, b, c in mo.KELLER:
        A = X @ X.conj().T
        X = a * X + (b * A + c * A @ A) @ X
    check_numbers("extra", updates["extra"], -LEARNING_RATE * (SHAPE[1] / SHAPE[0]) ** 0.5 * X, 0.1)


# Sizes, counted in the traced program: no clock is asked.


def layers(count: int) -> dict[str, Any]:
    """``count`` leaves, half of them matrices, as shapes."""
    layer = {"kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32), "bias": jax.ShapeDtypeStruct((6,), jnp.float32)}
    return {f"layer_{index}": layer for index in range(count // 2)}


def work(contender: Contender, count: int) -> tuple[int, int]:
    """Operations of an update of ``count`` leaves, and the bytes of all that it computes on the way."""
    params = layers(count)
    optimizer = contender.build(None, params)
    traced = jax.make_jaxpr(optimizer.update)(params, jax.eval_shape(optimizer.init, params), params)
    written = [equation.outvars for equation in equations(traced)]
    sizes = [result.aval.size * result.aval.dtype.itemsize for results in written for result in results]
    return len(written), sum(sizes)


def in_proportion(few: int, many: int) -> Attempt:
    """``many`` leaves cost ``many / few`` times what ``few`` cost, in operations and in memory."""

    def attempt(contender: Contender) -> None:
        for name, less, more in zip(("operations", "bytes"), work(contender, few), work(contender, many), strict=True):
            growth = more / less / (many / few)
            require(growth <= 1.01, f"{many:,} leaves take {more / less:.3g} times the {name} of {few:,}")

    return attempt


def one_batch(count: int) -> Attempt:
    """As many matrix products for ``count`` equal matrices as for one."""

    def products(contender: Contender, count: int) -> int:
        params = {f"w_{index}": jax.ShapeDtypeStruct((64, 64), jnp.float32) for index in range(count)}
        optimizer = contender.build(None, params)
        traced = jax.make_jaxpr(optimizer.update)(params, jax.eval_shape(optimizer.init, params), params)
        return sum(equation.primitive.name == "dot_general" for equation in equations(traced))

    def attempt(contender: Contender) -> None:
        one, many = products(contender, 1), products(contender, count)
        require(many == one, f"{many} matrix products, {one} for one matrix")

    return attempt
