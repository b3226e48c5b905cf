"""Theorem 1: the layer of the least score decides every answer."""
