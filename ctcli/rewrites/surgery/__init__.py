"""Rewrites that change weights exactly: norms fused, rotations."""
