"""Records of families, by kind: decoders, mixtures of experts, hybrids, and those before Llama."""
