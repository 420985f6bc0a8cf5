"""Streaming checkpoint rewriter: a checkpoint is a value, every subcommand a function on it."""

__version__ = "0.1.0"
