"""Engines propose text from a language model."""
