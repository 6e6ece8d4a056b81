"""What gpu.py and tpu.py both time: one matrix orthogonalized, and one update of a whole tree."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.accelerators._budget import Contender
from benchmarks.shared.measure import compile_program
from benchmarks.shared.optimizers import Tree, training_step
from benchmarks.shared.report import Row
from benchmarks.shared.updates import Training, draw


def orthogonalizing(function: Callable[[jax.Array], jax.Array], shape: tuple[int, int]) -> Contender:
    """``function`` of one normal float32 matrix, compiled."""
    program = compile_program(function, jax.ShapeDtypeStruct(shape, jnp.float32))
    matrix = jax.random.normal(jax.random.key(0), shape)
    return Contender(partial(program.run, matrix), costs(program.costs))


def updating(optimizer: optax.GradientTransformation, params: Tree) -> Contender:
    """Updates of parameters of these shapes, compiled, each on what the one before left."""
    state = jax.eval_shape(optimizer.init, params)
    program = compile_program(training_step(optimizer), params, state, params, donate=(1, 2))
    values = draw(params, 0)
    return Contender(Training(program.run, draw(params, 1), optimizer.init(values), values), costs(program.costs))


def costs(known: Row) -> Row:
    """Of a program's costs those that the tables show."""
    return {name: known[name] for name in ("temporary MB", "product GFLOP", "compile s")}
