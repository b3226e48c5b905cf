"""What layers are made of: the residual stream and the weights that act on it."""
