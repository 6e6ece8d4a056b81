"""Compiles one step of an optimizer for a mesh, and reads from the program what each device does and sends."""

import contextlib
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh

import muon_optax as mo
from benchmarks.mesh._cases import Case
from benchmarks.shared.hlo import count_lines, estimated_cycles
from benchmarks.shared.hlo_collectives import collectives
from benchmarks.shared.hlo_products import product_flops
from benchmarks.shared.optimizers import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    Tree,
    adamw,
    optax_muon,
    orthogonalization_gflop,
    training_step,
)

OURS, OURS_FLOAT32 = "muon_optax.muon", "muon_optax.muon, float32"
OPTAX, ADAMW = "optax.contrib.muon", "optax.adamw"

# What XLA prints where it gathers an array whole because it knows no way from one layout to another.
REMATERIALIZED = "Involuntary full rematerialization"

Figures = dict[str, float | int | str | None]


class Contender(NamedTuple):
    """An optimizer, the plan that says how its state lies, and the GFLOP of orthogonalizing every matrix once."""

    optimizer: optax.GradientTransformation
    plan: mo.Plan
    gflop: float


def contender(name: str, case: Case, mesh: Mesh) -> Contender:
    """An optimizer by the name that it has in the tables."""
    orthogonalizer = mo.newton_schulz(dtype=jnp.float32 if name == OURS_FLOAT32 else jnp.bfloat16)
    plan = case.plan(mesh, orthogonalizer=orthogonalizer)
    if name == ADAMW:
        return Contender(adamw(), plan, 0.0)
    if name == OPTAX:
        return Contender(optax_muon(case.params), plan, orthogonalization_gflop(case.params))
    optimizer = mo.muon(LEARNING_RATE, weight_decay=WEIGHT_DECAY, orthogonalizer=orthogonalizer, shardings=plan)
    return Contender(optimizer, plan, 1e-9 * _total(case.params, orthogonalizer.flops))


def _total(params: Tree, cost: Callable[[int, int], float]) -> float:
    """The cost of all matrices of a tree."""
    layouts = mo.assign_layouts(params).values()
    total = 0.0
    for leaf, layout in zip(jax.tree.leaves(params), layouts, strict=True):
        for *batch, rows, columns in layout.matrix_shapes(leaf.shape) if layout else ():
            total += math.prod(batch) * cost(rows, columns)
    return total


class MeshProgram(NamedTuple):
    """A compiled step, the plan behind it, and the figures of one device."""

    text: str
    plan: mo.Plan
    figures: Figures


def compile_step(name: str, case: Case, devices: Iterable[Any], kind: AxisType = AxisType.Auto) -> MeshProgram:
    """Compiles the update and ``optax.apply_updates``, state and parameters donated, or the update alone, gradients and
    state donated; all arrays stay as they lie.

    Nothing is run and no array is made, so that any model fits.
    """
    mesh, started = case.mesh(devices, kind), time.perf_counter()
    optimizer, plan, gflop = contender(name, case, mesh)
    seconds = {"plan s": time.perf_counter() - started}
    shardings = case.shardings(mesh)
    state_shardings = mo.state_shardings(optimizer, case.params, plan)
    params = _placed(case.params, shardings)
    state = _placed(jax.eval_shape(optimizer.init, case.params), state_shardings)
    function, donated = (optimizer.update, (0, 1)) if case.update_only else (training_step(optimizer), (1, 2))
    step = jax.jit(function, donate_argnums=donated, out_shardings=(shardings, state_shardings))
    with standard_error() as printed:
        started = time.perf_counter()
        lowered = step.lower(params, state, params)
        seconds["trace s"] = time.perf_counter() - started
        started, busy = time.perf_counter(), time.process_time()
        compiled = lowered.compile()
        seconds["compile s"] = time.perf_counter() - started
        seconds["compile CPU s"] = time.process_time() - busy
        complaints = {"rematerialized": printed().count(REMATERIALIZED)}
    text = compiled.as_text()
    cycles = estimated_cycles(text)
    figures = {"cycles": cycles} if cycles else {}
    figures |= _work(text, gflop / case.count, orthogonalization_gflop(case.params) / case.count)
    figures |= _travel(text) | complaints | _memory(compiled) | {"XLA lines": count_lines(text)} | seconds
    return MeshProgram(text, plan, figures)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )


def _work(text: str, ideal: float, direct: float) -> Figures:
    """GFLOP of the products, and as multiples of what an even share would be."""
    work = 1e-9 * product_flops(text)
    return {
        "GFLOP": work,
        "over even share": work / ideal if ideal else None,
        "over even share, direct": work / direct if ideal else None,
    }


def _travel(text: str) -> Figures:
    found, kinds = collectives(text), Counter()
    for collective in found:
        kinds[collective.kind] += collective.times
    return {
        "MB sent": 1e-6 * sum(collective.times * collective.sent_bytes for collective in found),
        "MB of results": 1e-6 * sum(collective.times * collective.result_bytes for collective in found),
        "collectives": kinds.total(),
        "kinds": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none",
    }


def _memory(compiled: jax.stages.Compiled) -> Figures:
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return {"temporary MB": 1e-6 * temporary, "peak MB": 1e-6 * (kept + temporary)}


@contextlib.contextmanager
def standard_error() -> Iterator[Callable[[], str]]:
    """Within, a function that reads what was printed to file descriptor 2: there XLA's compiler complains."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def read() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.write(2, read().encode())
