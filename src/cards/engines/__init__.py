"""Engines, which propose text from a language model."""
