"""Comparing methods: what their answers are worth, and what they cost."""
