"""`cards methods`: what can be chosen, what it needs, what it can be set to."""

from __future__ import annotations

import inspect

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cards.cli.settings import settings_of
from cards.registry import METHODS, method_class


def methods() -> None:
    """List the methods: what they need, what they do, their settings and defaults."""
    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("needs")
    table.add_column("what it does; settings and defaults", ratio=1)
    for name in METHODS:
        cls = method_class(name)
        settings = [f"{s.flag}={s.default(name)}" for s in settings_of(name)]
        summary = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        table.add_row(name, "\n".join(sorted(cls.needs)), Group(Text(summary), Text(" ".join(settings), style="cyan")))
    Console(highlight=False, markup=False).print(table)
