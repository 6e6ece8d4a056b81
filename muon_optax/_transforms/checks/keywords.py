"""Arguments of other libraries' Muons, answered with what says the same here."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


class _Answer(NamedTuple):
    """What to write, and the argument that takes it; ``None`` where nothing is to be written."""

    argument: str | None
    write: str | Callable[[Any], str]  # a function of the value that was given; in a text {value} stands for it


def _scale(value: Any) -> str:
    if str(value) in ("None", "original"):
        return "scale='keller'"
    if str(value) in ("0.2", "match_rms_adamw"):
        return "scale='moonlight'"
    return f"scale=lambda fan_in, fan_out: {value} * max(fan_in, fan_out) ** 0.5"


def _start(value: Any) -> str:
    norms = {"schatten": "schatten4", "aol": "aol", "frobenius": "frobenius"}
    if str(value) in norms:
        return f"orthogonalizer=muon_optax.newton_schulz(norm={norms[str(value)]!r})"
    return "orthogonalizer=muon_optax.newton_schulz(norm='schatten4'), the norm closest to the spectral one"


def _coefficients(value: Any) -> str:
    if str(value) == "dion":
        return "orthogonalizer=muon_optax.newton_schulz(muon_optax.YOU_JIACHENG)"
    return (
        "orthogonalizer=muon_optax.newton_schulz(coefficients) with one (a, b, c) for each step, as in ((3.4445, "
        "-4.775, 2.0315),) * 5"
    )


def _adamws(name: str) -> _Answer:
    return _Answer("adamw", f"adamw=optax.adamw(learning_rate, {name}={{value}}, ...), which then brings all its own")


_BY_ITSELF = _Answer(None, "leave it out, matrices of one shape run together by themselves and on a mesh as planned")
_NO_EPSILON = _Answer(
    "adamw",
    "leave it out for the matrices, whose scale doesn't count; AdamW's is in adamw=optax.adamw(..., eps={value})",
)
_STEPS = _Answer("orthogonalizer", "orthogonalizer=muon_optax.newton_schulz(muon_optax.KELLER[:1] * {value})")
_NUMBERS = _Answer("layouts", "layouts=, which takes the same tree or function")

# By library: optax.contrib's and MaxText's, then PyTorch's and Keller Jordan's.
_ANSWERS = {
    "beta": _Answer("momentum", "momentum={value}, or muon_optax.nesterov_ema({value}, debias=True) for its average"),
    "ns_steps": _STEPS,
    "ns_coeffs": _Answer("orthogonalizer", _coefficients),
    "ns_dtype": _Answer("orthogonalizer", "orthogonalizer=muon_optax.newton_schulz(dtype={value})"),
    "preconditioning": _Answer("orthogonalizer", _start),
    "eps": _NO_EPSILON,
    "consistent_rms": _Answer("scale", _scale),
    "mu_dtype": _Answer(
        "momentum_dtype", "momentum_dtype={value}; AdamW's is in adamw=optax.adamw(..., mu_dtype={value})"
    ),
    "muon_weight_dimension_numbers": _NUMBERS,
    "weight_dimension_numbers": _NUMBERS,
    "nesterov_style": _Answer(
        "momentum", "leave it out for 'sgd', and write momentum=muon_optax.nesterov_ema(0.95, debias=True) for 'ema'"
    ),
    "adaptive": _Answer(None, "leave it out, since no argument scales by the dual norm: chain a part of your own"),
    "adam_learning_rate": _Answer("adamw_learning_rate", "adamw_learning_rate={value}"),
    "adam_weight_decay": _adamws("weight_decay"),
    "adam_weight_decay_mask": _adamws("mask"),
    **{f"adam_{name}": _adamws(name) for name in ("b1", "b2", "eps", "eps_root", "nesterov")},
    **dict.fromkeys(("batch_update", "batch_update_size", "ns_unroll"), _BY_ITSELF),
    **dict.fromkeys(("replicate_ns_matrix_axes", "replicate_ns_batch_axis", "use_all_to_all"), _BY_ITSELF),
    "params": _Answer(None, "leave it out, parameters go to optimizer.init(params) and optimizer.update"),
    "lr": _Answer("learning_rate", "learning_rate={value}"),
    "ns_coefficients": _Answer("orthogonalizer", _coefficients),
    "steps": _STEPS,
    "adjust_lr_fn": _Answer("scale", _scale),
    "betas": _Answer("adamw", "adamw=optax.adamw(learning_rate, b1=..., b2=...), which then brings all its own"),
    **{name: _adamws(name) for name in ("b1", "b2")},
    "use_muon": _Answer("layouts", "layouts=, with None by path for what AdamW trains"),
    "mask": _Answer("weight_decay_mask", "weight_decay_mask="),
}


def explain_arguments(factory: Callable[P, Result]) -> Callable[P, Result]:
    """``factory`` with the same signature, which refuses arguments of other Muons by what to write in their place."""
    parameters = inspect.signature(factory).parameters
    by_position = [name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]

    @functools.wraps(factory)
    def explained(*args: P.args, **kwargs: P.kwargs) -> Result:
        name = factory.__name__
        if len(args) > len(by_position):
            raise TypeError(
                f"{name}() takes one positional argument, {', '.join(by_position)}, and got {len(args)}: give all "
                "others by name. Other Muons have others in these places, and a wrong name is answered with the right "
                "one."
            )
        texts = [
            _explained(name, word, value, list(parameters)) for word, value in kwargs.items() if word not in parameters
        ]
        if args and "lr" in kwargs:  # PyTorch's habit
            texts.append(f"What is given by position is {by_position[0]}: parameters go to optimizer.init(params).")
        if texts:
            raise TypeError(f"{' '.join(texts)} The documentation's page on other Muons has the whole table.")
        return factory(*args, **kwargs)

    return explained


def _explained(factory: str, word: str, value: Any, known: Sequence[str]) -> str:
    missing, answer = f"{factory}() has no argument {word}", _ANSWERS.get(word)
    if answer is None:
        near = difflib.get_close_matches(word, known, 1, cutoff=0.75)
        return f"{missing}: write {near[0]}." if near else f"{missing}: it has {', '.join(known)}."
    write = answer.write(value) if callable(answer.write) else answer.write.format(value=_shown(value))
    if answer.argument is None or answer.argument in known:
        return f"{missing}: {'' if write.startswith('leave') else 'write '}{write}."
    return f"{missing} and none in its place, but muon_optax.muon has one: {write}."


def _shown(value: Any) -> str:
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 40 else "..."
