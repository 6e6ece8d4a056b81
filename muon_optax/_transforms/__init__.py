"""The Optax parts: partition, orthogonalize, scale_by_shape, and in `family` those that came after Muon."""
