"""What a program costs: products, FLOPs, memory, XLA text, seconds to trace and compile, milliseconds to run."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple, TypeVar

import jax

from benchmarks.shared.hlo import count_lines

Key = TypeVar("Key")

SECONDS_A_ROUND = 0.02  # short programs are called this long in each round: a clock and a queue have their own costs


def compile_afresh() -> None:
    """From here on every compilation is a fresh one, whatever the environment says. Called before the first."""
    jax.config.update("jax_enable_compilation_cache", False)


class Program(NamedTuple):
    """A compiled function and what is known before it runs."""

    run: jax.stages.Compiled
    text: str
    costs: dict[str, float | int | None]


def compile_program(
    function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = (), platform: str | None = None
) -> Program:
    """Traces and compiles ``function`` for arguments like these, with nothing of JAX cached.

    ``platform`` is that of the arguments' devices where it is not the one that JAX runs on.
    """
    platform = platform or jax.default_backend().replace("gpu", "cuda")  # as JAX names it when it lowers
    # Otherwise the first program traces jax.numpy's own functions and the next ones find them traced.
    jax.clear_caches()
    started = time.perf_counter()
    traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    compiled_at = time.perf_counter()
    text = compiled.as_text()
    multiplications, products = count_products(traced.jaxpr, platform)
    # XLA counts what stands in a loop once.
    flops = None if " while(" in text else compiled.cost_analysis().get("flops")
    costs = {
        "products": products,
        "product GFLOP": 2e-9 * multiplications,
        "XLA GFLOP": None if flops is None else 1e-9 * flops,
        "temporary MB": 1e-6 * compiled.memory_analysis().temp_size_in_bytes,
        "XLA lines": count_lines(text),
        "trace s": lowered_at - started,
        "compile s": compiled_at - lowered_at,
    }
    return Program(compiled, text, costs)


def count_products(jaxpr: Any, platform: str) -> tuple[int, int]:
    """The multiplications of a jaxpr's matrix products, and their number; a batch is one product."""
    multiplications = products = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            products += 1
            multiplications += equation.outvars[0].aval.size * math.prod(sizes[axis] for axis in contracted)
        for inner, times in _inner_jaxprs(equation, platform):
            inner_multiplications, inner_products = count_products(inner, platform)
            multiplications += times * inner_multiplications
            products += times * inner_products
    return multiplications, products


def _inner_jaxprs(equation: Any, platform: str) -> list[tuple[Any, int]]:
    """What an equation runs, and how often: of a conditional its largest branch, or the one for the platform."""
    if equation.primitive.name == "cond":
        branches, platforms = equation.params["branches"], equation.params.get("branches_platforms")
        if platforms is None:
            return [(max(branches, key=lambda branch: count_products(branch, platform)), 1)]
        fitting = (index for index, names in enumerate(platforms) if names is None or platform in names)
        return [(branches[next(fitting)], 1)]
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return [(value, times) for value in values if _is_jaxpr(value)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def time_interleaved(
    runs: Mapping[Key, Callable[[], Any]], rounds: int, step: Callable[[str], None]
) -> dict[Key, list[float]]:
    """Milliseconds of one call of each function, in each round.

    Every round calls everyone, and begins with another one each time: what disturbs the machine disturbs all alike.
    """
    calls = {name: _calls_a_round(run) for name, run in runs.items()}
    times: dict[Key, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(1e3 * _seconds(runs[name], calls[name]) / calls[name])
        step(f"round {index + 1}")
    return times


def _calls_a_round(run: Callable[[], Any]) -> int:
    _seconds(run, 1)
    return max(1, round(SECONDS_A_ROUND / _seconds(run, 1)))


def _seconds(run: Callable[[], Any], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - started


def summarize_times(times: list[float], reference: list[float]) -> dict[str, float]:
    """The median, and the median of the ratios to the reference in the same round."""
    ratios = [one / other for one, other in zip(times, reference, strict=True)]
    return {"ms": median(times), "ratio to optax": median(ratios)}
