"""Datasets of prompts, labels and distractors: examples, rows, files."""
