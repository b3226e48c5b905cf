"""What `snowball check` does: guarantees judged by measuring alone, reports and pictures."""
