"""Pruning of real decoders: criteria, searches, and checkpoints that load."""
