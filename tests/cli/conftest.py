"""Fixtures for the tests of the commands."""

from helpers.mock_cli import cli as cli
