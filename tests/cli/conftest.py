"""Fixtures of the command's tests."""

from helpers.mock_cli import cli as cli
