"""The Optax parts: partition, orthogonalize, scale_by_shape."""
