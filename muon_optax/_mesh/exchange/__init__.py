"""Pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""
