"""Who orthogonalizes what on a mesh, and how it gets there and back."""
