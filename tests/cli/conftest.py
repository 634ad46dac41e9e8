"""Fixtures of the command's tests."""

from mocked import cli as cli
