"""SliceGPT: a narrower residual stream, as a compressor to compare the removal of layers with."""
