"""What can be said of a checkpoint from its headers and configs alone."""
