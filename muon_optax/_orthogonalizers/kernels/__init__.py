"""Newton-Schulz on a TPU with symmetric products: of each pair of blocks that mirror each other one is multiplied."""
