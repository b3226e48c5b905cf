"""Theorem 4: layers that are irrelevant by Lipschitz bounds on tubes around the run."""
