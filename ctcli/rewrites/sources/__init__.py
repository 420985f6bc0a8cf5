"""What becomes of checkpoints that are quantized already."""
