"""Checkpoints on a model hub: reading them, streaming them, publishing them."""
