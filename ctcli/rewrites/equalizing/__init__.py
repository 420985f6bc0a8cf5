"""The rewrite that evens out the columns of linears without changing the model."""
