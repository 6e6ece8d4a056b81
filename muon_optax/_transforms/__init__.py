"""The Optax parts: partition, orthogonalize, scale_by_shape; what came after Muon in `family`."""
