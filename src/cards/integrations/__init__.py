"""Integrations with other libraries: transformers, lm-evaluation-harness, TRL and Ray."""
