"""A state and its optimizer: what a state keeps, and whether it fits."""
