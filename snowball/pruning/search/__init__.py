"""Searches for the set of units to remove: one file each, all over the same objective."""
