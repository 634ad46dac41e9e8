"""Entry point of `python -m cards`, the same as the `cards` command."""

from cards.cli import main

main()
