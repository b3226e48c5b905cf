"""Many processes that measure, on one machine or on a Ray cluster, and one that writes."""
