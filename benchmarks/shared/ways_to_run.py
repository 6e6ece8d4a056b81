"""Matrices of one shape in one step of Muon: the ways to run them, and the limits that their times propose."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import muon_optax as mo
from benchmarks.shared.measure import Program
from benchmarks.shared.optimizers import LEARNING_RATE, WEIGHT_DECAY
from muon_optax._orthogonalizers.batching import _Limits, map_matrices

Matrices: TypeAlias = Sequence[jax.Array]
Way: TypeAlias = Callable[[Matrices], Matrices]
ORTHOGONALIZER = mo.newton_schulz()
REFERENCE = "one by one"
PAYS = 0.97  # a ratio of times that is no accident
COSTS = 1.05


class Case(NamedTuple):
    """So many matrices of one shape."""

    matrices: int
    rows: int
    cols: int

    def __str__(self) -> str:
        return f"{self.matrices} of {self.rows} x {self.cols}"


def ways(case: Case) -> dict[str, Way]:
    """How the matrices of a group can be run."""
    found: dict[str, Way] = {
        REFERENCE: lambda matrices: [ORTHOGONALIZER(matrix) for matrix in matrices],
        "loop": lambda matrices: list(jax.lax.map(ORTHOGONALIZER, jnp.stack(matrices))),
        "one batch": lambda matrices: list(ORTHOGONALIZER(jnp.stack(matrices))),
        "as muon_optax": partial(map_matrices, ORTHOGONALIZER),
    }
    for elements in (2**16, 2**23, 2**24):
        count = elements // (case.rows * case.cols)
        if 1 < count < case.matrices:
            found[f"batches of {count}"] = partial(_in_batches, count)
    return found


def _in_batches(count: int, matrices: Matrices) -> Matrices:
    return list(jax.lax.map(ORTHOGONALIZER, jnp.stack(matrices), batch_size=count))


def step_with(way: Way, gradients: Matrices, momenta: Matrices, params: Matrices) -> tuple[Matrices, Matrices]:
    """``(params, momenta)`` after one step of Muon."""
    momenta = [gradient + 0.95 * momentum for gradient, momentum in zip(gradients, momenta, strict=True)]
    directions = way([gradient + 0.95 * momentum for gradient, momentum in zip(gradients, momenta, strict=True)])
    return [
        param - LEARNING_RATE * (0.2 * max(param.shape) ** 0.5 * direction + WEIGHT_DECAY * param)
        for param, direction in zip(params, directions, strict=True)
    ], momenta


def running(case: Case, program: Program) -> Callable[[], Matrices]:
    """Steps of a compiled :func:`step_with`, each on what the one before left."""
    keys = jax.random.split(jax.random.key(0), case.matrices)
    gradients = [jax.random.normal(key, (case.rows, case.cols)) for key in keys]
    # Momenta and parameters are both donated.
    state = [[jnp.zeros_like(gradient) for gradient in gradients] for _ in range(2)]

    def run() -> Matrices:
        state[1], state[0] = program.run(gradients, *state)
        return state[1]

    return run


def propose_limits(ratios: dict[Case, dict[str, float]], present: _Limits) -> _Limits | None:
    """The row of ``_LIMITS`` for these ratios to one by one.

    Args:
        ratios: By case and way; what was not measured is missing.
        present: What is kept where these times say nothing.

    Returns:
        ``matrix``: the largest size up to which a batch wins in every case. ``batch``: the largest such batch.
        ``written_out``: the largest number of matrices above that size that a loop slows down. ``None`` if no case
        has both ways.
    """
    batches = {case: own["one batch"] for case, own in ratios.items() if "one batch" in own}
    if not batches:
        return None
    losing = min((case.rows * case.cols for case, ratio in batches.items() if ratio > PAYS), default=None)
    winning = [case for case in batches if losing is None or case.rows * case.cols < losing]
    matrix = max((case.rows * case.cols for case in winning), default=0)
    slowed = [
        case.matrices for case, own in ratios.items() if case.rows * case.cols > matrix and own.get("loop", 0) > COSTS
    ]
    return present._replace(
        matrix=matrix,
        batch=max((case.matrices * case.rows * case.cols for case in winning), default=0),
        written_out=max(slowed, default=present.written_out),
    )
