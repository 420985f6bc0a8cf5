"""What a tensor will be, known before it is read."""
