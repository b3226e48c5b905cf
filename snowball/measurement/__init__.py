"""Scores, removals and answers of our decoders on a dataset, from their weights."""
