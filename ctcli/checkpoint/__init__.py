"""The checkpoint as a value."""
