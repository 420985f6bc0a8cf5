"""Whole-process timings against other tools. Not tests: nothing here passes or fails."""
