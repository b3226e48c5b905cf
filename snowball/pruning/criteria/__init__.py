"""Criteria that rank units by evidence of the model itself: one file each."""
