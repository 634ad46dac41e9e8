"""Prompts, statistics, tables and runs shared by bench, evaluate, calibrate and diagnose."""
