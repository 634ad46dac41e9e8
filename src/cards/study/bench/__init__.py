"""Benches: a comparison of methods by the quality and the cost of their responses."""
