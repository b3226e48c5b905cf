"""Theorem 3: one layer that every proxy ranks last decides every answer."""
