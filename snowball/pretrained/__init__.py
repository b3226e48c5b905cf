"""Pretrained models from elsewhere, loaded and checked."""
