"""The tests can fail: for each way to get Newton-Schulz wrong, one of them is named that then does."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_golden
import test_gram_newton_schulz
import test_newton_schulz
import test_step

from muon_optax._orthogonalizers import gram_newton_schulz as _gram_newton_schulz
from muon_optax._orthogonalizers import newton_schulz as _newton_schulz
from muon_optax._orthogonalizers import precision as _precision
from muon_optax._orthogonalizers import start as _start
from muon_optax._orthogonalizers import step as _step
from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.start import Start

Mutation = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]
Step = tuple[float, float, float]

ITERATIONS = ("direct_newton_schulz", "gram_newton_schulz")
CACHED = [
    test_newton_schulz.jitted,
    test_gram_newton_schulz.jitted,
    test_gram_newton_schulz.result,
    test_golden.ours,
]


def forget() -> None:
    jax.clear_caches()  # Equal orthogonalizers share what jit has traced, mutated or not.
    for function in CACHED:
        function.cache_clear()


def replace_polynomial(patch: pytest.MonkeyPatch, polynomial: Callable[[Step, jax.Array], tuple]) -> None:
    for module in (_newton_schulz, _gram_newton_schulz):
        patch.setattr(module, "polynomial", polynomial)


def without_restarts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_gram_newton_schulz, "restart_steps", lambda coefficients, dtype: ())


def with_factors_in_the_other_order(patch: pytest.MonkeyPatch) -> None:
    """Equal in exact arithmetic: the factors of one Gram matrix commute."""
    beside = _gram_newton_schulz._beside
    patch.setattr(_gram_newton_schulz, "_beside", lambda X, B, Q: beside(X, Q, B))


def with_a_rounded_coefficient(index: int, dtype: str) -> Mutation:
    """Only where products are of ``dtype``."""

    def polynomial(step: Step, A: jax.Array) -> tuple:
        if A.dtype == dtype:
            step = tuple(float(np.asarray(k, jnp.bfloat16)) if i == index else k for i, k in enumerate(step))
        return _step.polynomial(step, A)

    return lambda patch: replace_polynomial(patch, polynomial)


def with_a_rounded_factor_of_x(patch: pytest.MonkeyPatch) -> None:
    """As JAX does by itself where a Python number meets a bfloat16 matrix."""

    def blend(scale: float, matrices: jax.Array, product: jax.Array) -> jax.Array:
        return (scale * matrices).astype(product.dtype) + product

    patch.setattr(_step, "blend", blend)


def without_step(skipped: int) -> Mutation:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        for name in ITERATIONS:
            patch.setattr(_newton_schulz, name, partial(iterate, getattr(_newton_schulz, name)))

    def iterate(iteration: Callable, begin: Start, coefficients: Coefficients) -> jax.Array:
        return iteration(begin, coefficients[:skipped] + coefficients[skipped + 1 :])

    return mutate


def replace_start(change: Callable[[Start], Start]) -> Mutation:
    def start(*arguments: object) -> Start:
        return change(_start.start(*arguments))

    return lambda patch: patch.setattr(_newton_schulz, "start", start)


def divided_by(norm: Callable[[jax.Array], jax.Array]) -> Mutation:
    """In place of its norm, each matrix X by ``norm(X)``, ``(*batch, 1, 1)``."""

    def change(begin: Start) -> Start:
        X = begin.X.astype(begin.norm.dtype)
        return Start(begin.X, _step.gram(begin.X) / norm(X) ** 2, norm(X))

    return replace_start(change)


def one(X: jax.Array) -> jax.Array:
    return jnp.ones_like(X[..., :1, :1])


def largest_entry(X: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(X), axis=(-2, -1), keepdims=True)


def with_two_gram_matrices(patch: pytest.MonkeyPatch) -> None:
    """``b A`` takes the Gram matrix as accumulated, and ``c A^2`` the rounded one."""

    def direct_newton_schulz(begin: Start, coefficients: Coefficients) -> jax.Array:
        X, exact, norm = begin
        Y = jnp.zeros_like(X)
        for index, (a, b, c) in enumerate(coefficients):
            if index > 0:
                X = Y.astype(X.dtype)
                exact = _step.gram(X)
            A = exact.astype(X.dtype)
            center = _step.center(b, c)
            identity = jnp.eye(A.shape[-1], dtype=exact.dtype)
            B = (b * exact + c * _precision.multiply(A, A) - center * identity).astype(X.dtype)
            Y = _step.apply(a + center, B, X)
            if index == 0:
                Y = Y / norm
        return Y

    patch.setattr(_newton_schulz, "direct_newton_schulz", direct_newton_schulz)


def with_the_center_on_the_wrong_side(patch: pytest.MonkeyPatch) -> None:
    """The same polynomial, of which a larger part is rounded."""
    center = _step.center
    patch.setattr(_step, "center", lambda b, c: -center(b, c))


def with_the_center_added_twice(patch: pytest.MonkeyPatch) -> None:
    def polynomial(step: Step, A: jax.Array) -> tuple:
        d, B = _step.polynomial(step, A)
        return 2 * step[0] - d, B

    replace_polynomial(patch, polynomial)


exact_direct = partial(test_newton_schulz.test_float32_direct_equals_the_oracle, (8, 32))
golden = partial(test_golden.test_displacement_equals_torch, "24x96_original", "bfloat16")
unbiased = partial(test_newton_schulz.test_no_coefficient_is_rounded_in_bfloat16, "direct")
MUTATIONS: dict[str, tuple[Mutation, Check]] = (
    {
        "no-restarts-bfloat16": (
            without_restarts,
            partial(test_gram_newton_schulz.test_bfloat16_is_about_as_exact_as_direct, "polar_express", 2, "log-1e-3"),
        ),
        "no-restarts-float32": (
            without_restarts,
            partial(test_gram_newton_schulz.test_long_schedules_do_not_diverge, "deepseek_v4", "float32"),
        ),
    }
    | {
        # Of wide matrices R is formed the other way round as well, and nothing shows.
        "factors-in-the-other-order": (
            with_factors_in_the_other_order,
            partial(
                test_gram_newton_schulz.test_every_schedule_keeps_its_range,
                "polar_express-8",
                "bfloat16",
                "frobenius",
                "tall",
                32,
                4,
            ),
        )
    }
    | {f"rounded-{'abc'[index]}": (with_a_rounded_coefficient(index, "float32"), exact_direct) for index in range(3)}
    | {
        f"rounded-{'abc'[index]}-bfloat16": (with_a_rounded_coefficient(index, "bfloat16"), unbiased)
        for index in range(3)
    }
    | {
        "rounded-factor-of-x": (with_a_rounded_factor_of_x, unbiased),
        "no-first-step": (without_step(0), exact_direct),
        "no-second-step": (without_step(1), golden),
        "no-last-step": (
            without_step(4),
            partial(test_newton_schulz.test_works_between_transposes, (8, 20), "gram", "bfloat16"),
        ),
        "no-norm": (divided_by(one), exact_direct),
        "no-norm-of-the-result": (
            replace_start(lambda begin: begin._replace(norm=jnp.ones_like(begin.norm))),
            exact_direct,
        ),
        "two-gram-matrices": (
            with_two_gram_matrices,
            partial(test_golden.test_bfloat16_error_is_no_larger_than_torchs, "24x96_original", "whole-run"),
        ),
        "center-on-the-wrong-side": (
            with_the_center_on_the_wrong_side,
            partial(test_step.test_what_is_rounded_is_smaller_than_without_centering, "keller"),
        ),
        "center-added-twice": (with_the_center_added_twice, exact_direct),
        "largest-entry": (divided_by(largest_entry), exact_direct),
        "largest-entry-bfloat16": (divided_by(largest_entry), golden),
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_named_test_fails(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, check = MUTATIONS[mutation]
    forget()
    check()
    forget()
    mutate(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            check()
    finally:
        forget()
