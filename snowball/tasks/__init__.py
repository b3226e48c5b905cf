"""Tasks: items as token ids, and what counts as a right answer."""
