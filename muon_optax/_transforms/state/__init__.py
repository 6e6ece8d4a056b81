"""A state and its optimizer: what a state keeps, whether it fits, how an earlier or another one is carried over."""
