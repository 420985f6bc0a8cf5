"""Facts about model architectures, as declarations."""
