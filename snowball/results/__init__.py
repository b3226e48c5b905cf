"""Results per item, kept as they are computed, and the statistics of them."""
