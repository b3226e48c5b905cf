"""A pruned model as a checkpoint that loads everywhere, and that is what was measured."""
