"""The builders of the theorems: from a dataset and scores to weights, and their cards."""
