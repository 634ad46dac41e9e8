"""Models of transformers, run in this process."""
