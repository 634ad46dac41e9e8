"""Diagnoses: whether a reward suits segments, measured on responses of the LM and on preference pairs."""
