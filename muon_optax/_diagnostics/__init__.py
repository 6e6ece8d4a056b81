"""Measurements of a training step, one a file; `muon_optax.diagnostics` is their front."""
