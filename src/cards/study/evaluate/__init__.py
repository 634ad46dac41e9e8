"""Evaluations: responses compared by judges and reward models, and checked for refusals and harm."""
