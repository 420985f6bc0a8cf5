"""The rewrite to one llama2.c file."""
