"""The arithmetic of quantizing in torch, for devices other than the CPU."""
