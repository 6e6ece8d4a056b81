"""Momentum in host memory through the TPU compiler, without a TPU: bytes by memory, and what runs beside the copies.

    pip install "jax[tpu]"                                        # in an environment of its own
    python benchmarks/accelerators/host_memory.py                 # one v5e chip, minutes
    python benchmarks/accelerators/host_memory.py --tpu v5e:4x4   # sixteen; v5p:8x8x16 has experts of a 1T model
    python benchmarks/accelerators/host_memory.py --quick         # momentum alone, seconds

One process at a time can hold libtpu. Nothing is run: no array is made.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.mesh._cases import ON_TPU, Case, whole
from benchmarks.shared.hlo import estimated_cycles, executed
from benchmarks.shared.measure import compile_afresh
from benchmarks.shared.optimizers import Tree, square_leaves, training_step
from benchmarks.shared.report import Progress, Report, Row, finish, parser

ONE_CHIP = "v5e:2x2"  # the smallest that the compiler knows; programs are for its first chip
HERTZ = {"v5e": 1.5e9, "v5p": 1.75e9}  # at which their peak of bfloat16 operations is reached
TOKENS = 4096
_HOST_COPY = re.compile(r"%(?P<name>copy-start[\w.-]*) = \([^=]*S\(5\)")
_DONE = re.compile(r" copy-done\(.*?%(?P<name>copy-start[\w.-]*)\)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')

Step = Callable[..., Any]

NOTES = [
    "Compiled and not run; figures are of one chip. State and parameters are donated, or in an update alone gradients "
    "and state. Momentum is muon_optax.scheduled_trace(0.95, nesterov=True), float32 but for the experts in bfloat16.",
    "device MB: arguments, results that take no argument's place, and temporary memory. host MB: the state there.",
    "link MB: what crosses the host's link each way in a step. GB/s: what the link must carry each way for the copies "
    "to take no longer than the compiler's estimate of all else.",
    "beside copies: the share of those cycles that runs while a copy from or to the host is under way.",
    "training step: eight layers of 1024 x 1024 with tanh, 4096 tokens, forward and backward in bfloat16.",
]


class Program(NamedTuple):
    """What a case compiles: the optimizer from its momentum, the arguments, and the function of the two."""

    case: Case
    function: Callable[[optax.GradientTransformation], Step]
    momentum_alone: bool = False
    tokens: bool = False


def programs(topology: str, quick: bool) -> dict[str, Program]:
    """What is compiled for a topology, by name."""
    if topology == ONE_CHIP:
        alone = Program(Case(square_leaves(16, 1024), {"data": 1}, whole), lambda momentum: momentum.update, True)
        training = Program(Case(square_leaves(8, 1024), {"data": 1}, whole), training_program, tokens=True)
        return {"momentum alone": alone} | ({} if quick else {"training step": training})
    cases = {name: case for name, case in ON_TPU[topology].items() if "expert-parallel" not in name}
    return {
        name: Program(case, (lambda optimizer: optimizer.update) if case.update_only else training_step)
        for name, case in cases.items()
    }


def training_program(optimizer: optax.GradientTransformation) -> Step:
    """``(params, state, tokens) -> (params, state)``."""

    def loss(params: Tree, x: jax.Array) -> jax.Array:
        for layer in params.values():
            x = jnp.tanh(x @ layer["kernel"].astype(x.dtype))
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(params: Tree, state: Any, x: jax.Array) -> tuple[Tree, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


def compile_program(
    program: Program, devices: Iterable[Any], momentum: optax.GradientTransformation
) -> jax.stages.Compiled:
    """Compiled for these chips, every array where it stays."""
    case = program.case
    mesh = case.mesh(devices)
    places, plan = case.shardings(mesh), case.plan(mesh)
    optimizer = momentum if program.momentum_alone else mo.muon(1e-3, momentum=momentum, shardings=plan)
    kept = mo.state_shardings(optimizer, case.params, plan)
    params = _placed(case.params, places)
    state = _placed(jax.eval_shape(optimizer.init, case.params), kept)
    out, donated, arguments = (places, kept), (0, 1), (params, state, params)
    if program.tokens:
        place = jax.tree.leaves(places)[0]
        arguments = (params, state, jax.ShapeDtypeStruct((TOKENS, 1024), jnp.bfloat16, sharding=place))
    elif program.momentum_alone:
        arguments = (params, state)
    elif not case.update_only:
        donated = (1, 2)
    jax.clear_caches()
    function = program.function(optimizer)
    return jax.jit(function, donate_argnums=donated, out_shardings=out).lower(*arguments).compile()


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree, shardings
    )


def figures(compiled: jax.stages.Compiled, hertz: float) -> Row:
    """Bytes by memory, and what runs beside the copies."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cycles, beside, copies = estimated_cycles(text), cycles_beside_copies(text), len(_HOST_COPY.findall(text))
    link = 1e-6 * memory.host_argument_size_in_bytes
    return {
        "device MB": 1e-6 * (memory.argument_size_in_bytes + results + memory.temp_size_in_bytes),
        "argument MB": 1e-6 * memory.argument_size_in_bytes,
        "temporary MB": 1e-6 * memory.temp_size_in_bytes,
        "host MB": 1e-6 * (memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes),
        "cycles": cycles,
        "host copies": copies,
        "link MB": link,
        "GB/s": 1e-3 * link / (cycles / hertz) if copies else None,
        "beside copies": beside / cycles if copies else None,
    }


def cycles_beside_copies(text: str) -> int:
    """Cycles of what runs between the start and the end of some copy from or to the host."""
    under_way: set[str] = set()
    total = 0
    # Of a conditional's branches the one that takes longest, as in the sum of all cycles.
    for line, times in executed(text, _cycles):
        if started := _HOST_COPY.search(line):
            under_way.add(started["name"])
        elif done := _DONE.search(line):
            under_way.discard(done["name"])
        elif under_way:
            total += times * _cycles(line)
    return total


def _cycles(line: str) -> int:
    found = _CYCLES.search(line)
    return int(found[1]) if found else 0


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tpu", default=ONE_CHIP, choices=(ONE_CHIP, "v5e:4x4", "v5p:8x8x16"), help="topology")
    options.add_argument("--batches", type=int, nargs="*", default=(16,), help="of offload_to_host (default 16)")
    options.add_argument("--only", default="", help="cases whose names contain this")
    given = options.parse_args(arguments)
    compile_afresh()
    chosen = {name: one for name, one in programs(given.tpu, given.quick).items() if given.only in name}
    momentum = mo.scheduled_trace(0.95, nesterov=True)
    memories = {"device": momentum} | {
        f"host, {batches} batch{'es' if batches > 1 else ''}": mo.offload_to_host(momentum, batches=batches)
        for batches in given.batches
    }
    devices = tpu_compiler.devices_of(given.tpu, "host_memory")
    label = "v5e" if given.tpu == ONE_CHIP else given.tpu
    report = Report("host_memory", f"TPU {label} compiler", NOTES, versions=tpu_compiler.versions())
    with Progress(len(chosen) * len(memories), report.name) as step:
        for name, program in chosen.items():
            for memory, transform in memories.items():
                started = time.process_time()
                compiled = compile_program(program, devices[: program.case.count], transform)
                seconds = {"compile CPU s": time.process_time() - started}
                report.rows.append(
                    {"case": name, "momentum": memory} | figures(compiled, HERTZ[given.tpu[:3]]) | seconds
                )
                report.write(given.output)  # each time: a run that is ended leaves what it had
                step(f"{name}, {memory}")
    finish(report, given.output)


if __name__ == "__main__":
    main()
