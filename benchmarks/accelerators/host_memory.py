"""Momentum in host memory through the TPU compiler, without a TPU: bytes by memory, and what runs beside the copies.

    pip install "jax[tpu]"                                          # in an environment of its own
    python benchmarks/accelerators/host_memory.py                  # all but what takes longest, a quarter of an hour
    python benchmarks/accelerators/host_memory.py --full           # a whole 1T model too, in place of 12 layers of it
    python benchmarks/accelerators/host_memory.py --only ZeRO-1    # cases whose names contain this
    python benchmarks/accelerators/host_memory.py --quick          # momentum alone, seconds

One process at a time can hold libtpu. Nothing is run: no array is made.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
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
from benchmarks.shared.hlo import computations_of, estimated_cycles, executed
from benchmarks.shared.measure import compile_afresh
from benchmarks.shared.optimizers import Tree, square_leaves, training_step
from benchmarks.shared.report import Progress, Report, Row, finish, parser

# What is compiled for, by the name of its rows. Of the smallest that the compiler knows, one chip is used.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5e:4x4": "v5e:4x4", "v5p:8x8x16": "v5p:8x8x16", "v5p": "v5p:2x2x1"}
WHOLE_1T = "1T MoE, expert-parallel, update only"
HERTZ = {"v5e": 1.5e9, "v5p": 1.75e9}  # at which their peak of bfloat16 operations is reached
TOKENS = 4096
_HOST_COPY = re.compile(r"%(?P<name>copy-start[\w.-]*) = \([^=]*S\(5\)")
_DONE = re.compile(r" copy-done\(.*?%(?P<name>copy-start[\w.-]*)\)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_FUSED = re.compile(r" fusion\(.*\bcalls=%?(?P<name>[\w.-]+)")
_PRODUCT = re.compile(r" (convolution|dot)\(")

Step = Callable[..., Any]

NOTES = [
    "Compiled and not run; figures are of one chip. State and parameters are donated, or in an update alone gradients "
    "and state. Momentum is muon_optax.scheduled_trace(0.95, nesterov=True), float32, and bfloat16 in the 1T model.",
    "device MB: arguments, results that take no argument's place, and temporary memory. host MB: the state there.",
    "link MB: what crosses the host's link each way in a step. GB/s: what the link must carry each way for the copies "
    "to take no longer than the compiler's estimate of all else.",
    "beside copies: the share of those cycles that runs while a copy from or to the host is under way. of products: "
    "the same of the cycles of matrix products alone.",
    "training step: eight layers of 1024 x 1024 with tanh, 4096 tokens, forward and backward in bfloat16.",
    "a plan's batch: the largest share of the momentum that one batch of the plan takes matrices from. Batches of "
    "offload_to_host are its own, of 1/16 here, and do not follow the plan's.",
]


class Program(NamedTuple):
    """What a case compiles: the optimizer from its momentum, the arguments, and the function of the two."""

    case: Case
    function: Callable[[optax.GradientTransformation], Step]
    momentum_alone: bool = False
    tokens: bool = False
    batches: Sequence[int] = (16,)  # of offload_to_host


def programs(topology: str, quick: bool, full: bool = False) -> dict[str, Program]:
    """What is compiled for a topology, by name."""
    if topology in HERTZ:
        one = Case(square_leaves(16, 1024), {"data": 1}, whole)
        alone = Program(one, lambda momentum: momentum.update, momentum_alone=True, batches=(1, 4, 16))
        training = Program(Case(square_leaves(8, 1024), {"data": 1}, whole), training_program, tokens=True)
        return {"momentum alone": alone} | ({} if quick else {"training step": training})
    # Where everything is whole on every chip, ZeRO-1 comes first. The experts are nearly all of the 1T model.
    cases = {
        name: case
        for name, case in ON_TPU[topology].items()
        if not name.endswith("replicated") and (not name.startswith("1T") or full == (name == WHOLE_1T))
    }
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


def compile_program(program: Program, devices: Iterable[Any], batches: int) -> jax.stages.Compiled:
    """Compiled for these chips, every array where it stays; momentum on the device if there are no ``batches``."""
    case = program.case
    mesh = case.mesh(devices)
    places, plan = case.shardings(mesh), case.plan(mesh)
    momentum = mo.scheduled_trace(0.95, nesterov=True)
    if batches:
        momentum = mo.offload_to_host(momentum, batches=batches)
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


def share_of_a_batch(plan: mo.Plan) -> float:
    """The bytes of the parameters that the largest batch of a plan takes matrices from, over those of all."""
    sizes = {path: math.prod(plan.placement.there[path].shard_shape(use.shape)) for path, use in plan.uses.items()}
    shares = []
    for batch in plan.batches:
        owners = chain.from_iterable(owners for stack in batch for owners in stack.owned.values())
        matrices = filter(None, chain.from_iterable(owners))
        shares.append(sum(sizes[path] for path in {plan.leaves[leaf].path for leaf, _ in matrices}))
    return max(shares) / sum(sizes.values())


def figures(compiled: jax.stages.Compiled, hertz: float) -> Row:
    """Bytes by memory, and what runs beside the copies."""
    memory, text = compiled.memory_analysis(), compiled.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    cycles, copies = estimated_cycles(text), len(_HOST_COPY.findall(text))
    beside, products_beside = shares_beside_copies(text)
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
        "beside copies": beside if copies else None,
        "of products": products_beside if copies else None,
    }


def shares_beside_copies(text: str) -> tuple[float, float | None]:
    """The share of cycles between the start and the end of some copy from or to the host: of all, and of products.

    The latter is ``None`` for a program without products.
    """
    computations, _ = computations_of(text)
    products = {name for name, lines in computations.items() if any(map(_PRODUCT.search, lines))}
    under_way: set[str] = set()
    total, beside = {True: 0, False: 0}, {True: 0, False: 0}
    # Of a conditional's branches the one that takes longest, as in the sum of all cycles.
    for line, times in executed(text, _cycles):
        if started := _HOST_COPY.search(line):
            under_way.add(started["name"])
        elif done := _DONE.search(line):
            under_way.discard(done["name"])
        else:
            fused = _FUSED.search(line)
            kind = bool(_PRODUCT.search(line)) or (fused is not None and fused["name"] in products)
            total[kind] += times * _cycles(line)
            beside[kind] += times * _cycles(line) * bool(under_way)
    of_products = beside[True] / total[True] if total[True] else None
    return sum(beside.values()) / max(1, sum(total.values())), of_products


def _cycles(line: str) -> int:
    found = _CYCLES.search(line)
    return int(found[1]) if found else 0


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tpu", nargs="*", default=list(TOPOLOGIES), choices=TOPOLOGIES, help="topologies")
    options.add_argument("--batches", type=int, nargs="*", help="of offload_to_host (default: 16; 1, 4, 16 alone)")
    options.add_argument("--only", default="", help='cases such as "v5e, training step" that contain this')
    given = options.parse_args(arguments)
    compile_afresh()
    named = [
        (topology, f"{topology}, {name}", program)
        for topology in (["v5e"] if given.quick else given.tpu)
        for name, program in programs(topology, given.quick, given.full).items()
    ]
    chosen = [one for one in named if given.only in one[1]]
    if not chosen:
        raise SystemExit(f"--only {given.only!r} matches nothing")
    rows = [
        (*one, count) for one in chosen for count in (0, *(one[2].batches if given.batches is None else given.batches))
    ]
    report = Report("host_memory" + "_full" * given.full, "TPU compiler", NOTES, versions=tpu_compiler.versions())
    with Progress(len(rows), report.name) as step:
        for topology, name, program, count in rows:
            started = time.process_time()
            devices = tpu_compiler.devices_of(TOPOLOGIES[topology], "host_memory")[: program.case.count]
            compiled = compile_program(program, devices, count)
            seconds = {"compile CPU s": time.process_time() - started}
            of_a_batch = share_of_a_batch(program.case.plan()) if program.case.count > 1 else None
            report.rows.append(
                {"case": name, "momentum": _memory(count)}
                | figures(compiled, HERTZ[topology[:3]])
                | {"a plan's batch": of_a_batch}
                | seconds
            )
            report.write(given.output)  # each time: a run that is ended leaves what it had
            step(f"{name}, {_memory(count)}")
    finish(report, given.output)


def _memory(batches: int) -> str:
    return f"host, {batches} batch{'es' if batches > 1 else ''}" if batches else "device"


if __name__ == "__main__":
    main()
