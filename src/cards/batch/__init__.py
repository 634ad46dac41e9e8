"""Batches: a file of prompts in, a file of responses out, in the same order, resumable after a kill at any time."""
