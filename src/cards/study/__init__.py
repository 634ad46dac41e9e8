"""Prompts, journals, statistics, tables and plots shared by bench, evaluate, calibrate and diagnose."""
