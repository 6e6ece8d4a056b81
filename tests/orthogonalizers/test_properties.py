"""What Newton-Schulz owes any matrix: properties over drawn shapes, spectra, dtypes, schedules, methods and norms."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from hypothesis import given, settings
from hypothesis import strategies as st

import muon_optax as mo
from muon_optax._orthogonalizers.coefficients import Coefficients

# An example compiles one program or more, which takes nearly all of its time: hence few examples, and few shapes.
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 17), (5, 12), (8, 8), (13, 6), (16, 24), (24, 24), (24, 11), (24, 2)]
SCHEDULES = [mo.KELLER, mo.YOU_JIACHENG, mo.CUBIC, mo.DEEPSEEK_V4]


class Case(NamedTuple):
    """An orthogonalizer, and a matrix or a batch of them for it, rounded to their dtype."""

    schedule: Coefficients
    products: str
    method: str
    norm: str
    matrices: np.ndarray

    @property
    def function(self) -> Callable[[jax.Array], jax.Array]:
        return jitted(*self[:4])

    def run(self, matrices: np.ndarray | None = None) -> np.ndarray:
        """In float64, of matrices that are rounded to the dtype of the case."""
        matrices = self.matrices if matrices is None else matrices.astype(self.matrices.dtype)
        return np.asarray(self.function(jnp.asarray(matrices)), np.float64)


@cache
def jitted(schedule: Coefficients, products: str, method: str, norm: str) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(mo.newton_schulz(schedule, dtype=jnp.dtype(products), method=method, norm=norm))


schedules = st.one_of(
    st.sampled_from(SCHEDULES),
    st.builds(mo.polar_express, st.integers(1, 7), st.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 0.5])),
)

# How far above a schedule's largest value a singular value may come, whatever the matrix.
ESCAPES = {"float32": 1e-2, "bfloat16": 0.1}


@st.composite
def spectra(draw: st.DrawFn, size: int) -> np.ndarray | None:
    """At most ``size`` singular values, the largest 1; None for those of a Gaussian matrix."""
    kind = draw(st.sampled_from(["gaussian", "spread", "decay", "deficient", "random"]))
    if kind == "spread":
        return np.linspace(1.0, 0.2, size)
    if kind == "decay":
        return np.logspace(0, -draw(st.integers(1, 7)), size)
    if kind == "deficient":
        return np.linspace(1.0, 0.3, draw(st.integers(1, size)))
    if kind == "random":
        return np.array([1.0, *draw(st.lists(st.floats(0.0625, 1.0), min_size=size - 1, max_size=size - 1))])
    return None


@st.composite
def cases(draw: st.DrawFn, batches: tuple[int, ...] = (0, 1, 2, 3)) -> Case:
    rows, cols = draw(st.sampled_from(SHAPES))
    batch = draw(st.sampled_from(batches))
    seed = draw(st.integers(0, 2**20))
    matrices = []
    for index in range(max(batch, 1)):
        spectrum = draw(spectra(min(rows, cols)))
        if spectrum is None:
            matrices.append(oracle.gaussian(rows, cols, seed=seed + index))
        else:
            matrices.append(oracle.with_spectrum(spectrum, rows, cols, seed=seed + index))
    stack = np.stack(matrices) if batch else matrices[0]
    return Case(
        draw(schedules),
        draw(st.sampled_from(["float32", "bfloat16"])),
        draw(st.sampled_from(["direct", "gram"])),
        draw(st.sampled_from(["frobenius", "schatten4"])),
        stack.astype(draw(st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]))),
    )


NORMS = {
    "frobenius": lambda values: np.linalg.norm(values, axis=-1, keepdims=True),
    "schatten4": lambda values: np.linalg.norm(values**2, axis=-1, keepdims=True) ** 0.5,
}


def sensitivity(schedule: Coefficients, low: float, high: float) -> float:
    """How far unit errors, one before each step and one after the last, move the result: the sum of all.

    For ``p``, the steps still to come, and singular values in an interval, an error moves the result by at most its
    size times the largest ``p'(x)`` or ``p(x) / x``: by so much the parts of an error that turn singular vectors grow.
    """
    total = 1.0
    for done in range(len(schedule)):
        ends = mo.coefficient_range(schedule[:done], low, high) if done else (low, high)
        x = np.linspace(max(ends[0], 1e-9), ends[1], 500)
        value, slope = x, np.ones_like(x)
        for a, b, c in schedule[done:]:
            slope = slope * (a + 3 * b * value**2 + 5 * c * value**4)
            value = a * value + b * value**3 + c * value**5
        total += max(np.abs(slope).max(), (value / x).max())
    return total


def interval(case: Case, matrix: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest singular value of ``matrix``, normalized."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    values = values / NORMS[case.norm](values)
    return values.min(), values.max()


def allowance(case: Case, matrix: np.ndarray, rounded: bool = False) -> float:
    """How far two results for ``matrix`` may lie apart, in RMS over its directions; ``rounded``: two inputs too.

    Twice what one rounding a step amounts to; about half of that was seen at the most.
    """
    low, high = interval(case, matrix)
    amplified = sensitivity(case.schedule, low, high)
    unit = float(jnp.finfo(case.matrices.dtype).eps) / 2
    limit = float(jnp.finfo(case.products).eps) / 2 * amplified + unit * (1 + rounded * amplified)
    # The Gram matrix holds squares: singular values below 2^-12 drown in its rounding. 1e-2 is what is promised.
    drowned = 1e-2 if case.method == "gram" and case.products == "float32" and low < 0.04 else 0.0
    return 2 * limit + drowned


def each(stack: np.ndarray) -> np.ndarray:
    return stack.reshape(-1, *stack.shape[-2:])


def assert_near(case: Case, got: np.ndarray, want: np.ndarray, rounded: bool = False) -> None:
    assert got.shape == want.shape == case.matrices.shape
    for ours, theirs, matrix in zip(each(got), each(want), each(case.matrices), strict=True):
        distance = np.linalg.norm(ours - theirs) / np.sqrt(min(matrix.shape))
        assert distance <= allowance(case, matrix, rounded)


def orthogonal(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(oracle.gaussian(size, size, seed=seed))[0]


@settings(max_examples=12)
@given(case=cases())
def test_the_transpose_gives_the_transpose(case: Case) -> None:
    turned = case.run(np.swapaxes(case.matrices, -1, -2))
    assert_near(case, np.swapaxes(turned, -1, -2), case.run())


@settings(max_examples=15)
@given(case=cases(), seed=st.integers(0, 2**20))
def test_turned_singular_vectors_turn_the_result(case: Case, seed: int) -> None:
    rows, cols = case.matrices.shape[-2:]
    Q, P = orthogonal(rows, seed), orthogonal(cols, seed + 1)
    got = case.run(Q @ case.matrices.astype(np.float64) @ P)
    assert_near(case, got, Q @ case.run() @ P, rounded=True)


@settings(max_examples=12)
@given(case=cases(), part=st.floats(-1, 1))
def test_any_positive_scale_gives_the_same(case: Case, part: float) -> None:
    decades = 2 if case.matrices.dtype == np.float16 else 30
    scaled = case.run(10.0 ** (decades * part) * case.matrices.astype(np.float64))
    assert_near(case, scaled, case.run(), rounded=True)


@settings(max_examples=12)
@given(case=cases(), data=st.data())
def test_any_power_of_two_gives_the_same_bits(case: Case, data: st.DataObject) -> None:
    power = data.draw(st.integers(-2, 12) if case.matrices.dtype == np.float16 else st.integers(-100, 100))
    # Entries 2^-6 of the largest or less are left out, so that no product with the power is subnormal.
    sizes = np.abs(case.matrices.astype(np.float64))
    kept = np.where(sizes > 2.0**-6 * sizes.max(axis=(-2, -1), keepdims=True), case.matrices.astype(np.float64), 0)
    np.testing.assert_array_equal(case.run(2.0**power * kept), case.run(kept))


@settings(max_examples=8)  # each compiles three programs
@given(case=cases(batches=(1, 2, 3)))
def test_stacked_equals_vmap_equals_leaf_by_leaf(case: Case) -> None:
    stacked = case.run()
    leaves = [jnp.asarray(matrix) for matrix in case.matrices]
    mapped = jax.jit(jax.vmap(case.function))(jnp.asarray(case.matrices))
    transform = mo.orthogonalize(case.function, layouts={"*": "io"})  # also those with a side of 1
    grouped, _ = transform.update(leaves, transform.init(leaves))
    assert_near(case, np.asarray(mapped, np.float64), stacked)
    assert_near(case, np.stack([case.run(matrix) for matrix in case.matrices]), stacked)
    assert_near(case, np.stack(grouped).astype(np.float64), stacked)


@settings(max_examples=20)
@given(case=cases())
def test_singular_values_lie_in_the_certified_range(case: Case) -> None:
    anywhere = mo.coefficient_range(case.schedule, 0.0)[1]
    for result, matrix in zip(each(case.run()), each(case.matrices), strict=True):
        values = np.linalg.svd(result, compute_uv=False)
        smallest, largest = mo.coefficient_range(case.schedule, *interval(case, matrix))
        # A single direction may take all of the error, which is otherwise divided among them.
        limit = allowance(case, matrix) * np.sqrt(min(matrix.shape))
        assert smallest - limit <= values.min()
        assert values.max() <= largest + limit
        # However ill-conditioned the matrix, and however much is allowed for that: nothing escapes.
        assert values.max() <= anywhere + ESCAPES[case.products]


@settings(max_examples=12)
@given(case=cases(), data=st.data())
def test_zero_rows_and_columns_stay_zero(case: Case, data: st.DataObject) -> None:
    rows, cols = (
        np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for n in case.matrices.shape[-2:]
    )
    kept = case.matrices.astype(np.float64) * rows[:, None] * cols
    result = case.run(kept)
    assert not result[..., ~rows, :].any()
    assert not result[..., :, ~cols].any()
    assert result.any() == kept.any()
