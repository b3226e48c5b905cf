"""Proofs about given weights by ball arithmetic: of the theorem, and of irrelevance."""
