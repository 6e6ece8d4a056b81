"""Which device orthogonalizes which matrix, and how matrices get there and back."""
