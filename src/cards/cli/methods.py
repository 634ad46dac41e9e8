"""`cards methods`: what can be chosen, what it needs, what it can be set to."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cards.registry import method_classes
from cards.settings import settings_of


def methods() -> None:
    """List the methods: what they need, what they do, their settings and defaults."""
    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("needs")
    table.add_column("what it does; settings and defaults", ratio=1)
    for name, cls in method_classes().items():
        settings = [f"{setting.flag}={setting.default_text}" for setting in settings_of(cls).values() if setting.typed]
        table.add_row(name, "\n".join(sorted(cls.needs)), Group(Text(cls.summary), Text(" ".join(settings), style="cyan")))
    Console(highlight=False, markup=False).print(table)
