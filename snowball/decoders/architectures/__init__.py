"""The families of architectures in which a decoder is written and read."""
