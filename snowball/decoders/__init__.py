"""Decoders in plain torch, their checkpoints and tokenizers, and their families."""
