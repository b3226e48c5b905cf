"""Theorem 2: any scores with any behaviour under every set of removals."""
