"""The rewrite that sets the smallest weights to zero."""
