"""Momenta: one part a file, in place of `optax.trace`."""
