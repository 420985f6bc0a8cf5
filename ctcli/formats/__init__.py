"""How weights are stored in a checkpoint, and what loaders make of it."""
