"""Functions of arrays that send singular values toward 1: Newton-Schulz, the exact polar factor, batching."""
