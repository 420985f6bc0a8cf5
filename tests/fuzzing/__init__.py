"""Damaged and hostile input for everything that is read: no end but the expected error."""
