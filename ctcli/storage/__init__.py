"""What bytes look like and where they are."""
