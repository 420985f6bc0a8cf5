"""The rewrite to compressed-tensors."""
