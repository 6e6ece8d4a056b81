"""What the rows try beside training: second steps with something changed, states of others, sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxpr import equations

from hostile.inputs import PLAIN, Change, plain, same, steps, vectors
from hostile.oracles import adam_update, muon_update
from hostile.row import Contender, WrongResultError, check_numbers, require

Attempt = Callable[..., None]
GENTLE = ((1.2, -0.2, 0.0),) * 5  # a third away from KELLER's result
State = Callable[[Contender, Any, Any], Any]  # of the parameters and the state that init and a step made


def second_step(
    gradients: Change = same,
    params: Change = same,
    state: Callable[[Contender, Any, Any], Any] = lambda contender, params, old: old,
    owed: Callable[..., np.ndarray] | None = None,
) -> Attempt:
    """A second step with something changed: the trees, the state, or the settings; ``owed``: the right matrices."""

    def attempt(contender: Contender, **settings: Any) -> None:
        given = plain()()
        first, second = contender.build(None, given.params), contender.build(None, given.params, **settings)
        _, old = first.update(given.gradients[0], first.init(given.params), given.params)
        changed = state(contender, given.params, old)
        updates, _ = second.update(gradients(given.gradients[1]), changed, params(given.params))
        if owed is None:
            raise WrongResultError("taken without a word")
        check_plain(updates, owed)

    return attempt


def check_plain(updates: Any, owed: Callable[..., np.ndarray]) -> None:
    want = {"other": owed(steps(1), "io"), "w": owed(steps(), "io"), "b": adam_update(vectors())}
    for name in PLAIN:
        check_numbers(name, updates[name], want[name], 0.1)


def same_state(contender: Contender, **settings: Any) -> None:
    """A checkpoint can be read into the optimizer with other settings."""
    params = plain()().params
    optimizers = contender.build(None, params), contender.build(None, params, **settings)
    shapes = [jax.tree.map(jnp.shape, jax.eval_shape(optimizer.init, params)) for optimizer in optimizers]
    require(shapes[0] == shapes[1], "the state has another shape for another number of steps")


def scanned(contender: Contender) -> None:
    """Steps in ``lax.scan``, which refuses a state that changes its dtypes."""
    given = plain(dtype="bfloat16")()
    optimizer = contender.build(given.layouts, given.params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *given.gradients)
    _, updates = jax.lax.scan(
        lambda state, gradient: optimizer.update(gradient, state, given.params)[::-1],
        optimizer.init(given.params),
        stacked,
    )
    check_plain(jax.tree.map(lambda leaf: leaf[-1], updates), muon_update)


def cost(contender: Contender, params: Any) -> dict[str, int]:
    """Of a traced update: no clock is asked."""
    optimizer = contender.build(None, params)
    traced = [*equations(jax.make_jaxpr(optimizer.update)(params, jax.eval_shape(optimizer.init, params), params))]
    written = [result.aval for equation in traced for result in equation.outvars]
    products = sum(equation.primitive.name == "dot_general" for equation in traced)
    size = sum(array.size * array.dtype.itemsize for array in written)
    return {"operations": len(traced), "bytes": size, "matrix products": products}


def in_proportion(few: int, many: int) -> Attempt:
    """``many`` leaves cost ``many / few`` times what ``few`` cost; the matrices are equal and one batch in both."""
    layer = {"kernel": jax.ShapeDtypeStruct((4, 6), jnp.float32), "bias": jax.ShapeDtypeStruct((6,), jnp.float32)}

    def attempt(contender: Contender) -> None:
        less, more = (cost(contender, {f"layer_{i}": layer for i in range(count // 2)}) for count in (few, many))
        allowed = {"operations": many / few, "bytes": many / few, "matrix products": 1}
        for name, factor in allowed.items():
            growth = more[name] / less[name]
            require(growth <= 1.01 * factor, f"{many:,} leaves take {growth:.3g} times the {name} of {few:,}")

    return attempt


# States of others.


def of_a_partition(contender: Contender, params: Any, old: Any) -> Any:
    """The labels of either library, and transforms of neither."""
    vectors = "adamw" if contender.ours else "adam"
    transforms = {"muon": optax.sgd(0.1), vectors: optax.adamw(0.1)}
    return optax.partition(transforms, {"other": "muon", "w": "muon", "b": vectors}).init(params)


def accumulating(contender: Contender, params: Any, old: Any) -> Any:
    return optax.MultiSteps(contender.build(None, params), 2).init(params)


def of_another_model(contender: Contender, params: Any, old: Any) -> Any:
    return contender.build(None, params).init({"old": params["w"], "b": params["b"]})


def as_numpy(contender: Contender, params: Any, old: Any) -> Any:
    return jax.tree.map(np.asarray, old)


FOREIGN: dict[str, State] = {
    "of optax.adamw": lambda contender, params, old: optax.adamw(0.1).init(params),
    "of optax.contrib.muon": lambda contender, params, old: optax.contrib.muon(0.1).init(params),
    "of another optax.partition": of_a_partition,
    "of a chain around the same optimizer": lambda contender, params, old: (old,),
    "of optax.MultiSteps around the same optimizer": accumulating,
    "None": lambda contender, params, old: None,
    "an empty tuple": lambda contender, params, old: (),
    "plain dicts, as Orbax restores without a target": lambda contender, params, old: {"inner_states": {"muon": {}}},
}
