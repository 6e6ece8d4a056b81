"""Measurements of a training step, leaf by leaf: what is not finite, how large updates are, how near to orthogonal."""

from muon_optax._diagnostics.finite import finite_or_raise, nonfinite_counts, raise_if_nonfinite
from muon_optax._diagnostics.idle import moved_without_gradient
from muon_optax._diagnostics.orthogonality import orthogonality_error
from muon_optax._diagnostics.record import RecordState, record
from muon_optax._diagnostics.recorded import recorded
from muon_optax._diagnostics.recording import Recording
from muon_optax._diagnostics.sizes import predicted_update_rms, update_rms

__all__ = [
    "RecordState",
    "Recording",
    "finite_or_raise",
    "moved_without_gradient",
    "nonfinite_counts",
    "orthogonality_error",
    "predicted_update_rms",
    "raise_if_nonfinite",
    "record",
    "recorded",
    "update_rms",
]


def __dir__() -> list[str]:
    """The public names alone, for those who look around by completion."""
    return __all__
